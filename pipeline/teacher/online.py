"""The teacher in the training loop, as without a cache; a baseline to compare the cache with."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from pipeline.data.normalisation import Normaliser
from pipeline.data.supervision import Batch
from pipeline.methods.catalogue import Revision
from pipeline.methods.label_revision import soft_labels
from pipeline.methods.logit_distillation import standardised
from pipeline.runtime.device import Runtime
from pipeline.teacher.frozen import Teacher, teacher_outputs


@dataclass(frozen=True, kw_only=True)
class OnlineTeacher:
    """A teacher that computes a batch's soft labels during training, as a cache would hold them."""

    teacher: Teacher
    runtime: Runtime
    revision: Revision
    eta: float
    revise_at: float
    """Temperature of the teacher's probabilities."""
    standardise: bool
    """True if the logits are standardised before the softmax."""

    def taught(self, batches: Generator[Batch]) -> Generator[Batch]:
        """The batches, with the teacher's soft labels and features of exactly their images."""
        normalise = self.teacher.normaliser(self.runtime.device)
        with closing(batches):
            for batch in batches:
                yield self._taught(batch, normalise)

    @torch.no_grad()  # not inference_mode: the student's loss saves these outputs for backward
    def _taught(self, batch: Batch, normalise: Normaliser) -> Batch:
        logits, features = teacher_outputs(
            self.teacher.model, normalise, batch, runtime=self.runtime
        )
        labels = soft_labels(
            standardised(logits) if self.standardise else logits,
            batch.labels.to(self.runtime.device),
            revision=self.revision,
            eta=self.eta,
            temperature=self.revise_at,
        )
        return replace(batch, soft_labels=labels, features=features)
