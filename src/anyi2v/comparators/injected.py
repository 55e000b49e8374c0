"""Base class of the comparators' runs: optional injection as in AnyI2V."""

from anyi2v.denoiser import Denoiser
from anyi2v.diffusion import Step
from anyi2v.job import Job, Run
from anyi2v.method.anyi2v import injection, job_features
from anyi2v.taps import Tap, no_tap


class Injected(Run):
    """A run that can inject features of the condition image during the first `inject_steps`."""

    def __init__(self, job: Job, denoiser: Denoiser, *, inject: bool):
        self.job, self.denoiser, self._injection = job, denoiser, no_tap
        if inject:
            self.features = job_features(job, denoiser)
            self._injection = injection(self.features, job.config)

    def injection(self, step: Step) -> Tap:
        """Return the injection tap of a step, or `no_tap` if nothing is injected."""
        return self._injection if step.index < self.job.config.inject_steps else no_tap

    def tap(self, step: Step) -> Tap:
        """The injection alone."""
        return self.injection(step)
