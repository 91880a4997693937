"""What every experiment works with: the scale, the samples, the trainings, and the training they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from deepshadows.outcomes import InputError
from deepshadows.verbs.paper.samples import Parts, Sample, Split, split_sample
from deepshadows.verbs.paper.scale import Scale
from deepshadows.verbs.paper.trainings import NetworkJob, Outcome, Trainer


@dataclass(frozen=True, kw_only=True)
class Study:
    """One run of the verb. Samples are read or simulated when an experiment first asks for them.

    Attributes
    ----------
    read : callable
        Name of a survey (des, hsc) to its sample.
    features : str, optional
        Address of the real feature table.
    """

    scale: Scale
    split: Split
    seed: int
    trainer: Trainer
    read: Callable[[str], Sample]
    features: str | None

    @cached_property
    def first(self) -> Sample:
        """The survey that the network is made for."""
        return self.read("des")

    @cached_property
    def second(self) -> Sample:
        """The one that it is transferred to.

        Raises
        ------
        InputError
            Its channels are of other bands.
        """
        sample = self.read("hsc")
        if sample.bands != self.first.bands:
            raise InputError(
                f"{sample.origin}: bands {','.join(sample.bands)}, the first survey has {','.join(self.first.bands)}"
            )
        return sample

    @cached_property
    def parts(self) -> Parts:
        """The split that all experiments but the split study share."""
        return self.parts_of(self.seed)

    def parts_of(self, seed: int) -> Parts:
        return split_sample(self.first, self.split, seed)

    def binary_job(self, seed: int) -> NetworkJob:
        """The paper's network on the split of this seed."""
        parts = self.parts_of(seed)
        return NetworkJob(
            name=f"CNN, seed {seed}",
            labels=self.first.labels,
            train=parts.train,
            validation=parts.validation,
            test=parts.test,
            recipe=self.scale.recipe.model_copy(update={"seed": seed}),
            keep_weights=seed == self.seed,
        )

    @cached_property
    def binary(self) -> Outcome:
        """The trained network of the study's own seed, with its weights."""
        (outcome,) = self.trainer.run(self.first, [self.binary_job(self.seed)], "training the network")
        return outcome
