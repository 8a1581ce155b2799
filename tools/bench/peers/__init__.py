"""The programs that are measured, one a file."""

from tools.bench.peers.base import Runner
from tools.bench.peers.ctranslate2 import CTranslate2
from tools.bench.peers.llamacpp import LlamaCpp
from tools.bench.peers.openvino import OpenVINO
from tools.bench.peers.pyllm import Pyllm
from tools.bench.peers.transformers import Simulated, Transformers

KINDS: tuple[type[Runner], ...] = (Pyllm, LlamaCpp, OpenVINO, CTranslate2, Transformers, Simulated)
RUNNERS = {kind.__name__: kind for kind in KINDS}
