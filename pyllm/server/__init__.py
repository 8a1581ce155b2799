"""A server that speaks OpenAI's API: see build_app and the command pyllm-serve. Needs pip install
'pyllm[server]'."""

from pyllm.server.app import build_app
from pyllm.server.service import SERVED
from pyllm.server.settings import Settings

__all__ = ["SERVED", "Settings", "build_app"]
