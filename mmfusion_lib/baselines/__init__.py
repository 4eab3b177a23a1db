"""What PMF is compared with: ten methods of its Table 2, and late averaging.

Every one is called like PMF, ``model(pixel_values, input_ids, attention_mask) -> PMFOutput``, and
is made by name: ``build("mbt", image_encoder, text_encoder, num_classes)``.
"""

from .methods import NAMES, build

__all__ = ["NAMES", "build"]
