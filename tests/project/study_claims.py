"""Sentences of the study's pages with the stored results that their numbers come from.

A sentence has `{}` for each number. `Minus` is the size of a difference: CLEAR if its interval
excludes 0, NOISE if it does not, ANY where the sentence says neither.
"""

from dataclasses import dataclass
from typing import TypeAlias

TEST = "test_accuracy"
MEAN, LAST = "held_out_accuracy_mean_of_last", "held_out_accuracy_last"
CLEAR, NOISE, ANY = "clear", "noise", "any"
RN8, RN20, OWN, SETTINGS = "ablation-resnet8", "ablation-resnet20", "teachers", "sensitivity"
ERRORS = "LR + DS, -2 errors"


@dataclass(frozen=True)
class Minus:
    """The size of a difference between two points of a study, in points."""

    study: str
    point: str
    other: str
    field: str = TEST
    kind: str = CLEAR


@dataclass(frozen=True)
class Mean:
    """The mean of a field over the seeds of a point; ``scale`` makes per cent of shares."""

    study: str
    point: str
    field: str
    scale: float = 100.0


@dataclass(frozen=True)
class Kept:
    """The share of the samples that a point distils, in per cent."""

    study: str
    point: str


@dataclass(frozen=True)
class Recorded:
    """A number that no stored run has: a setting, or printed once by a command."""

    value: str


Value: TypeAlias = Minus | Mean | Kept | Recorded


def own(teacher: str, point: str, other: str, field: str = TEST, kind: str = CLEAR) -> Minus:
    """A difference between students of one of our own teachers."""
    reference = other if other == "plain" else f"{teacher}: {other}"
    return Minus(OWN, f"{teacher}: {point}", reference, field, kind)


def accuracy(teacher: str) -> Mean:
    """The accuracy of one of our own teachers on the test images."""
    return Mean(OWN, f"{teacher}: KD", "teacher_accuracy_test")


def calibration(study: str, point: str) -> Mean:
    return Mean(study, point, "test_calibration_error", 1.0)


def setting(point: str, field: str = TEST, kind: str = CLEAR) -> Minus:
    return Minus(SETTINGS, point, "base", field, kind)


PUBLIC = Mean(RN8, "KD", "teacher_accuracy_test")
W20, W40, W60, E3, E10, E20 = (
    "20 % wrong labels",
    "40 % wrong labels",
    "60 % wrong labels",
    "3 epochs",
    "clean",
    "20 epochs",
)
ETAS = ("eta 0.5", "eta 0.6", "eta 0.7", "eta 0.9")

CONCLUSIONS: dict[str, tuple[Value, ...]] = {
    "The teacher is a public resnet56, right on {} % of the test images.": (PUBLIC,),
}
WORST_TEACHER = "A {} % teacher costs a KD student {} points; with label revision it costs {}."
STUDY: dict[str, tuple[Value, ...]] = {
    # In short, and what is run
    "Label revision gains {} points over KD for the ResNet-8 and {} for the ResNet-20, with the "
    "public teacher.": (Minus(RN8, "LR", "KD"), Minus(RN20, "LR", "KD")),
    "With our own teachers it gains from {} points, with the best one, to {}, with the worst": (
        own(E20, "LR", "KD", kind=ANY),
        own(W60, "LR", "KD"),
    ),
    "which reaches {} % on lossless CIFAR-10": (Recorded("93.6"),),
    "It reaches {} % on the test images and {} % on the training images": (
        PUBLIC,
        Recorded("89.0"),
    ),
    "one-cycle to {} (ResNet-8) or {} (ResNet-20)": (Recorded("0.3"), Recorded("0.2")),
    "eta {}, temperature 4 and weights of {} (label) and {} (teacher) are the defaults": (
        Recorded("0.8"),
        Recorded("0.1"),
        Recorded("0.9"),
    ),
    "Python {}, torch {};": (Recorded("3.11"), Recorded("2.15")),
    # Label revision
    "Label revision gains {} points over KD for the ResNet-8 and {} for the ResNet-20. Over no "
    "teacher it gains {} and {} points. With the default selection on top it is {} points over "
    "KD for both students. All of these are clear.": (
        Minus(RN8, "LR", "KD"),
        Minus(RN20, "LR", "KD"),
        Minus(RN8, "LR", "plain"),
        Minus(RN20, "LR", "plain"),
        Minus(RN8, ERRORS, "KD"),
    ),
    "With the default selection on top it is {} points over KD for both students.": (
        Minus(RN20, ERRORS, "KD"),
    ),
    "On the held-out images label revision is {} and {} points over KD, both clear": (
        Minus(RN8, "LR", "KD", MEAN),
        Minus(RN20, "LR", "KD", MEAN),
    ),
    WORST_TEACHER: (
        accuracy(W60),
        own(W60, "KD", "plain"),
        own(W60, "LR", "plain"),
    ),
    "A {} % teacher costs {} points with KD and {} with label revision.": (
        accuracy(E3),
        own(E3, "KD", "plain"),
        own(E3, "LR", "plain"),
    ),
    "A {} % teacher becomes worth having: KD loses {} points, within noise, and label revision "
    "gains {}, which is clear": (
        accuracy(W20),
        own(W20, "KD", "plain", kind=NOISE),
        own(W20, "LR", "plain"),
    ),
    "With the best teacher, {} %, KD gains {} points and label revision {}.": (
        accuracy(E20),
        own(E20, "KD", "plain"),
        own(E20, "LR", "plain"),
    ),
    "Label revision is {} points ahead, within noise, and {} ahead on the held-out images, which "
    "is clear.": (own(E20, "LR", "KD", kind=NOISE), own(E20, "LR", "KD", MEAN)),
    "With the {} % teacher it is {} points ahead, within noise.": (
        accuracy(E10),
        own(E10, "LR", "KD", kind=NOISE),
    ),
    "With the teacher that sees blurred images it is {} points ahead, which is clear.": (
        own("blurred", "LR", "KD"),
    ),
    "rises from {} to {} with the {} % teacher. It rises from {} to {} with the {} % one, and "
    "from {} to {} with the blurred one": (
        calibration(OWN, "20 epochs: KD"),
        calibration(OWN, "20 epochs: LR"),
        accuracy(E20),
        calibration(OWN, "clean: KD"),
        calibration(OWN, "clean: LR"),
        accuracy(E10),
        calibration(OWN, "blurred: KD"),
        calibration(OWN, "blurred: LR"),
    ),
    "Revising every sample is {} points ahead for the ResNet-8, within noise. On the held-out "
    "images it is {} points ahead, within noise, and {} ahead in the last epoch, which is clear.": (
        Minus(RN8, "LR", "LR of wrong rows", kind=NOISE),
        Minus(RN8, "LR", "LR of wrong rows", MEAN, NOISE),
        Minus(RN8, "LR", "LR of wrong rows", LAST),
    ),
    "Swapped labels gain {} points over KD and dropping wrong labels gains {}; both are clear.": (
        Minus(RN8, "swap", "KD"),
        Minus(RN8, "drop wrong", "KD"),
    ),
    "It reaches {} % without a teacher and has little to copy from an {} % one. KD costs it {} "
    "points, within noise.": (
        Mean(RN20, "plain", TEST),
        PUBLIC,
        Minus(RN20, "KD", "plain", kind=NOISE),
    ),
    # Repair
    "For the ResNet-8 it gains {} points over KD and {} over no teacher. For the ResNet-20 it "
    "gains {} and {} points. Over label revision alone it gains {} and {} points. All of these "
    "are clear. On the held-out images it gains {} points over label revision alone, within "
    "noise, and {}, which is clear.": (
        Minus(RN8, "repaired, LR", "KD"),
        Minus(RN8, "repaired, LR", "plain"),
        Minus(RN20, "repaired, LR", "KD"),
        Minus(RN20, "repaired, LR", "plain"),
        Minus(RN8, "repaired, LR", "LR"),
        Minus(RN20, "repaired, LR", "LR"),
        Minus(RN8, "repaired, LR", "LR", MEAN, NOISE),
        Minus(RN20, "repaired, LR", "LR", MEAN),
    ),
    "Repair lowers the calibration error from {} to {} for the ResNet-8. For the ResNet-20 it "
    "falls from {} to {}": (
        calibration(RN8, "LR"),
        calibration(RN8, "repaired, LR"),
        calibration(RN20, "LR"),
        calibration(RN20, "repaired, LR"),
    ),
    "Repair alone gains {} points over KD for the ResNet-8, which is clear. Label revision adds "
    "{} points to it, which is clear. On the held-out images it adds {} points, within noise, and "
    "{} in the last epoch, which is clear": (
        Minus(RN8, "repaired, KD", "KD"),
        Minus(RN8, "repaired, LR", "repaired, KD"),
        Minus(RN8, "repaired, LR", "repaired, KD", MEAN, NOISE),
        Minus(RN8, "repaired, LR", "repaired, KD", LAST),
    ),
    # Selection
    "Selection by sign differs from all samples by less than {} points": (Recorded("0.3"),),
    "the correct samples are {} points below all samples for the ResNet-8, which is clear. For "
    "the ResNet-20 they are {} below, within noise. The best 85 % by influence are {} points "
    "below, within noise.": (
        Minus(RN8, "repaired, LR + correct only", "repaired, LR"),
        Minus(RN20, "repaired, LR + correct only", "repaired, LR", kind=NOISE),
        Minus(RN8, "repaired, LR + DS", "repaired, LR", kind=NOISE),
    ),
    "Selection by sign is {} points above a random set of its size for the ResNet-8 and {} for "
    "the ResNet-20, both within noise. It is {} points below the correct samples for both "
    "students, within noise.": (
        Minus(RN8, "LR + DS", "LR + random", kind=NOISE),
        Minus(RN20, "LR + DS", "LR + random", kind=NOISE),
        Minus(RN8, "LR + DS", "LR + correct only", kind=NOISE),
    ),
    "It is {} points below the correct samples for both students, within noise.": (
        Minus(RN20, "LR + DS", "LR + correct only", kind=NOISE),
    ),
    "The best half by influence are {} points below all samples on the held-out images, which is "
    "clear. The best quarter are {} points below there, which is clear.": (
        setting("best 0.5 by influence", MEAN),
        setting("best 0.25 by influence", MEAN),
    ),
    "From the {} % teacher, selection by sign keeps {} % of the samples. Its students are {} "
    "points above all samples, within noise, and {} above on the held-out images, which is clear. "
    "A random set of that size is {} points above all samples, which is clear. Selection by sign "
    "is {} points above the random set, within noise.": (
        accuracy(W60),
        Kept(OWN, f"{W60}: LR + DS"),
        own(W60, "LR + DS", "LR", kind=NOISE),
        own(W60, "LR + DS", "LR", MEAN),
        own(W60, "LR + random", "LR"),
        own(W60, "LR + DS", "LR + random", kind=NOISE),
    ),
    "The correct samples, {} %, are {} points above all samples, within noise. Selection by sign "
    "is {} points above these, which is clear, and {} on the held-out images, within noise.": (
        Kept(OWN, f"{W60}: LR + correct only"),
        own(W60, "LR + correct only", "LR", kind=NOISE),
        own(W60, "LR + DS", "LR + correct only"),
        own(W60, "LR + DS", "LR + correct only", MEAN, NOISE),
    ),
    "With the teachers of {}, {} and {} % selection by sign changes nothing clearly.": (
        accuracy(W20),
        accuracy(W40),
        accuracy(E3),
    ),
    "From the {} % teacher it keeps {} % of the samples. Its students are {} points below all "
    "samples and {} below KD, both clear.": (
        accuracy(E20),
        Kept(OWN, f"{E20}: LR + DS"),
        own(E20, "LR + DS", "LR"),
        own(E20, "LR + DS", "KD"),
    ),
    "The default keeps {} % of the samples and is within noise of all samples and of KD.": (
        Kept(OWN, f"{E20}: {ERRORS}"),
    ),
    "With the {} % teacher the default is {} points above the sign, which is clear.": (
        accuracy(E10),
        own(E10, ERRORS, "LR + DS"),
    ),
    "From the {} % teacher it keeps {} % of the samples. It gains {} points, within noise, and {} "
    "on the held-out images in the last epoch, which is clear. It makes no visible difference "
    "with the teachers of {} and {} %.": (
        accuracy(W60),
        Kept(OWN, f"{W60}: {ERRORS}"),
        own(W60, ERRORS, "LR", kind=NOISE),
        own(W60, ERRORS, "LR", LAST),
        accuracy(E20),
        accuracy(E10),
    ),
    "From the public teacher it keeps {} % of the samples. That costs {} points for the ResNet-8 "
    "and {} for the ResNet-20, both within noise, and {} on the ResNet-8's held-out images, which "
    "is clear.": (
        Kept(RN8, ERRORS),
        Minus(RN8, ERRORS, "LR", kind=NOISE),
        Minus(RN20, ERRORS, "LR", kind=NOISE),
        Minus(RN8, ERRORS, "LR", MEAN),
    ),
    "Selection by sign gains {} points over KD, which is clear, and label revision adds {}, "
    "within noise. The correct samples gain {} points over KD, which is clear.": (
        Minus(RN8, "DS", "KD"),
        Minus(RN8, "LR + DS", "DS", kind=NOISE),
        Minus(RN8, "correct only", "KD"),
    ),
    # Views
    "With KD they are {} points below 16 views, within noise, and {} below on the held-out "
    "images, which is clear. With label revision 8 views are as good as 16, and four are {} "
    "points below, within noise. Two views are {} points below on the held-out images, and one "
    "view is {} below; both are clear. KD from the label of the clean view alone is {} points "
    "below KD from 16 views, which is clear. Without a teacher, 16 replayed views are {} points "
    "above new crops in every epoch, within noise": (
        Minus(RN8, "KD, 4 views", "KD", kind=NOISE),
        Minus(RN8, "KD, 4 views", "KD", MEAN),
        setting("views 4", kind=NOISE),
        setting("views 2", MEAN),
        setting("views 1", MEAN),
        Minus(RN8, "KD, clean view", "KD"),
        Minus(RN8, "plain, same views", "plain", kind=NOISE),
    ),
    # Settings
    "The defaults are eta {}, temperature 4, and weights of {} (label) and {} (teacher).": (
        Recorded("0.8"),
        Recorded("0.1"),
        Recorded("0.9"),
    ),
    "Eta from {} to {} is within noise of {}. Eta {} hardly revises and is {} points below in the "
    "last epoch on the held-out images, which is clear. Weights of {} and {} are {} points below "
    "the defaults, within noise, and {} below on the held-out images, which is clear. Equal "
    "weights are {} points below, at the edge of noise; the teacher alone is {} below, within "
    "noise.": (
        *map(Recorded, ("0.5", "0.9", "0.8", "0.95")),
        setting("eta 0.95", LAST),
        *map(Recorded, ("0.3", "0.7")),
        setting("weights 0.3 and 0.7", kind=NOISE),
        setting("weights 0.3 and 0.7", MEAN),
        setting("weights 0.5 and 0.5", kind=ANY),
        setting("weights 0.0 and 1.0", kind=NOISE),
    ),
    "Temperature 1 is {} points below it, and {} on the held-out images; both are clear. "
    "Temperature 2 is {} points below, within noise.": (
        setting("temperature 1"),
        setting("temperature 1", MEAN),
        setting("temperature 2", kind=NOISE),
    ),
    "{} at temperature 1, {} at 2, {} at 4 and {} at 8": tuple(
        calibration(SETTINGS, point)
        for point in ("temperature 1", "temperature 2", "base", "temperature 8")
    ),
}
WITHIN_NOISE = (
    *(
        Minus(RN8, a, b, f)
        for a in ("swap", "drop wrong")
        for b in ("LR", "LR of wrong rows")
        for f in (TEST, MEAN)
    ),
    *(
        Minus(name, point, "LR")
        for name in (RN8, RN20)
        for point in ("LR + DS", "LR + correct only", "LR + random")
    ),
    Minus(RN8, "LR + lowest EL2N", "LR"),
    *(own(teacher, "LR + DS", "LR", field) for teacher in (W20, W40, E3) for field in (TEST, MEAN)),
    *(own(E20, ERRORS, other, field) for other in ("LR", "KD") for field in (TEST, MEAN)),
    own(E10, ERRORS, "LR"),
    *map(setting, (*ETAS, "temperature 8", "best 0.95 by influence", "views 8")),
)
"""Differences that the study calls within noise without a number."""
README: dict[str, tuple[Value, ...]] = CONCLUSIONS | {
    WORST_TEACHER: STUDY[WORST_TEACHER],
    "has {} of the speed": (Recorded("0.99"),),
    "is {} to {} times as fast": (Recorded("3.3"), Recorded("5.8")),
    "[arXiv {}": (Recorded("2404.03693"),),
    "under Apache-{},": (Recorded("2.0"),),
}
"""Speeds are held by `test_performance.py`."""
PAGES = {
    "README.md": README,
    "docs/index.md": {
        "a public resnet56 that is right on {} % of the test images.": (PUBLIC,),
        "[arXiv {}": (Recorded("2404.03693"),),
        "under the [Apache-{}": (Recorded("2.0"),),
    },
    "docs/results/study.md": STUDY,
    "docs/results/conclusions.md": CONCLUSIONS,
}
