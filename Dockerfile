# pyllm as a server, without a model of its own but the built-in one:
#
#     docker build -t pyllm .
#     docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD:/models:ro" pyllm -m smollm2.llm --key SECRET
#
# What stands behind the image's name are options of pyllm serve; leave --host and --port as they are. docker stop
# wants --time 35, so that running requests get their 30 seconds (see --drain).

FROM python:3.12-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
# The engine's threads are OpenMP's
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)[server]" && rm -r /wheels
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin pyllm
USER pyllm
WORKDIR /models
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["pyllm-serve", "--host", "0.0.0.0"]
