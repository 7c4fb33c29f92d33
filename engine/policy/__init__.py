"""The policy on Megatron-core: the one folder that imports `megatron`."""

import warnings

# On import Megatron-core tells a dozen times that TransformerEngine and Apex are absent. They are optional here, and a
# user who reads a wall of warnings at every start stops reading the ones that matter.
warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.core")
