"""What can go wrong while building or serving.

BuildError
├── UnsupportedModelError   the checkpoint is not a one-logit BERT / RoBERTa / XLM-R classifier
├── ParityError             the exported graph does not compute what PyTorch computes; nothing was installed
├── RepositoryError         a model repository is missing, incomplete or changed since it was built
├── ServerStartError        tritonserver did not become ready; carries the tail of its log
└── MissingExtraError       an optional dependency is not installed; the message holds the pip command
"""


class BuildError(Exception):
    """Base of every error this package raises on purpose."""


class UnsupportedModelError(BuildError):
    """The checkpoint cannot be exported; the message says why."""


class ParityError(BuildError):
    """The exported graph differs from PyTorch beyond the tolerance."""


class RepositoryError(BuildError):
    """A model repository is missing, incomplete, or differs from its manifest."""


class ServerStartError(BuildError):
    """The embedded tritonserver did not become ready."""


class MissingExtraError(BuildError):
    """An optional dependency is missing; the message gives the pip command that brings it."""
