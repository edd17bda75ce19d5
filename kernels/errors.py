"""The one error that a bad model, file or row gives."""


class ModelError(ValueError):
    """A model file, its contents or the rows given to a model are not what they must be."""
