"""Errors of the builder and the local server.

BuildError
├── UnsupportedModelError   the checkpoint is not a one-logit BERT / RoBERTa / XLM-R classifier
├── ParityError             the exported graph's logits differ from PyTorch's; nothing was installed
├── RepositoryError         a model repository is missing, incomplete, changed, read-only or locked
├── ServerStartError        tritonserver did not become ready; the message ends with the tail of its log
└── MissingExtraError       an optional dependency is not installed; the message holds the pip command
"""


class BuildError(Exception):
    """Base of all errors that this package defines."""


class UnsupportedModelError(BuildError):
    """The checkpoint cannot be exported; the message says why."""


class ParityError(BuildError):
    """The exported graph differs from PyTorch by more than the tolerance."""


class RepositoryError(BuildError):
    """A model repository is missing, incomplete, read-only, locked, or differs from its manifest."""


class ServerStartError(BuildError):
    """The embedded tritonserver did not become ready."""


class MissingExtraError(BuildError):
    """An optional dependency is missing; the message gives the pip command that installs it."""
