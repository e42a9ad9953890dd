"""The authors' code and ours: constructor arguments, parameter names and checkpoints.

U-DiT's are those of Tian et al. (github.com/YuchuanTian/U-DiT), DiT's those of Peebles & Xie (github.com/facebookresearch/DiT).
"""

from space.official.arguments import kwargs_from_spec, spec_from_kwargs
from space.official.names import official_names
from space.official.weights import load_weights, state_dict, trained_as, write_state_dict

__all__ = ["kwargs_from_spec", "load_weights", "official_names", "spec_from_kwargs", "state_dict", "trained_as", "write_state_dict"]
