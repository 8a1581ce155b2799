"""The cases of all families, in the order of the table."""

from tools.prove.case import Case
from tools.prove.cases.attention import ATTENTION
from tools.prove.cases.gemma import GEMMAS
from tools.prove.cases.latent import LATENTS
from tools.prove.cases.layer_norm import LAYER_NORM
from tools.prove.cases.llama import LLAMA
from tools.prove.cases.mixtures import MINIMAX, MIXTURES
from tools.prove.cases.relatives import RELATIVES
from tools.prove.cases.states import STATES

CASES: dict[str, Case] = {
    **LLAMA,
    **GEMMAS,
    **RELATIVES,
    **MIXTURES,
    **ATTENTION,
    **STATES,
    **MINIMAX,
    **LAYER_NORM,
    **LATENTS,
}
