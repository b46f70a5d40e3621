"""What a run is: settings, presets, identities, and the jobs that they imply."""

from kava.config.job import Job, Runtime
from kava.config.jobs import Jobs
from kava.config.load import load_config
from kava.config.schema import Config

__all__ = ["Config", "Job", "Jobs", "Runtime", "load_config"]
