"""The project's error types. Each message says what happened, to what, and what to do next."""


class LanceError(Exception):
    """Base of every error that this project raises on purpose."""


class SettingsError(LanceError):
    """A setting is missing, unknown or out of its range."""


class SeedError(LanceError):
    """Seed data cannot be read, or holds no usable row."""


class ArtifactError(LanceError):
    """An artifact (table or checkpoint) is missing, incomplete, or not the one that its digest names."""


class GenerationError(LanceError):
    """An engine cannot load its model or did not answer every request."""


class ClusterError(LanceError):
    """A Ray cluster is not there, gives nothing to work with, or stopped."""


class TrainingError(LanceError):
    """A training set cannot be trained on, or training went wrong."""


class EvaluationError(LanceError):
    """A task cannot be evaluated."""


class StudyError(LanceError):
    """A run of a study stopped."""
