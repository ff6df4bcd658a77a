"""The error of all converters."""


class ConversionError(ValueError):
    """Something about the source or the request does not fit; the message is one sentence that names the way out."""
