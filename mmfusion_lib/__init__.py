"""mmfusion_lib: the library that the book builds, chapter by chapter.

Importing it is cheap: a public name is imported when it is first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_WHERE = {
    "InputError": "errors",
    "ImageEncoder": "encoders",
    "TextEncoder": "encoders",
    "EncoderConfig": "encoders",
    "load_image_encoder": "checkpoints",
    "load_text_encoder": "checkpoints",
    "load_tokenizer": "checkpoints",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'mmfusion_lib' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
