"""The companion package of the textbook *Deep Learning and Neural Networks*."""

__version__ = "0.1.0"
