"""What a run is: settings, presets, identities, and the jobs that they imply."""

from kava.config.jobs import Job, Jobs, Runtime
from kava.config.load import load_config
from kava.config.schema import Config

__all__ = ["Config", "Job", "Jobs", "Runtime", "load_config"]
