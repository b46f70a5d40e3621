"""The words of the page, each in one plain sentence; of the losses, those that an arm of the report has."""

from kava.grades import COLLAPSE
from kava.report.build import Report

EFFECT_SIZE = "h (effect size)"
STEPS_SAVED = "steps saved"
WORDS = {
    STEPS_SAVED: "After how many training steps an arm has what its control had at a step, on validation questions; "
    "between steps that were scored by straight lines.",
    "control": "An arm without usable KV signal; a KV arm that does not beat it has shown nothing.",
    "sft": "The control trained on the texts alone: the same student, data and steps without a KV loss.",
    "KV loss": "The distance between the student’s keys and values and the teacher’s, projected to its size; "
    "it is added to the cross entropy until the share kv_until of the steps.",
    EFFECT_SIZE: "Cohen’s h: a difference of two accuracies on a scale on which 0.2 is small, 0.5 medium and 0.8 "
    "large.",
    "Holm’s correction": "Raises p-values for the number of tests on the page, since of many some come out small by "
    "chance.",
    "minimal detectable effect": "The smallest true difference that so many questions would show in 80% of cases.",
    "centred cosine": "Cosine of projected teacher KV and student KV after each channel’s mean is removed: 1 is the "
    "same direction, and predicting the mean scores 0.",
    "r²": "The share of the student KV’s variance that projected teacher KV predicts: 1 is all of it, 0 no more than "
    "the mean does.",
    "retrieval": "How often the student vector that is nearest to a projected teacher vector, within its example, is "
    "one of the same token.",
    "alignment accuracy": "The share of tokens whose centred cosine is above 0.95.",
    "angular distance": "The angle of the centred cosine as a share of a half turn: 0 is the same direction, 0.5 a "
    "right angle.",
    "collapse": f"A raw cosine above {COLLAPSE[0]} with an r² below {COLLAPSE[1]}: the projection predicts each "
    "channel’s mean and little more.",
}
# By the name under which the table of results has them.
LOSSES = {
    "mercator": "A KV loss of one minus the cosine, with a small weight on the ratio of lengths.",
    "mse": "A KV loss of the mean squared difference.",
    "smooth_l1": "A KV loss that is squared for small differences and absolute for large ones.",
    "hybrid": "A KV loss that sums mercator and mse.",
    "structural": "A KV loss that also compares the attention that the student’s queries pay to either keys.",
}


def glossary(report: Report) -> dict[str, str]:
    """Word → what it means, in the order shown."""
    used = {arm.loss for arm in report.arms.values()}
    unused = {EFFECT_SIZE: not report.metrics[0].proportion, STEPS_SAVED: not report.steps_saved}
    words = {metric.label: metric.meaning for metric in report.metrics}
    for word, meaning in WORDS.items():
        if not unused.get(word):
            words[word] = meaning
        if word == "KV loss":
            words |= {name: meaning for name, meaning in LOSSES.items() if name in used}
    return words
