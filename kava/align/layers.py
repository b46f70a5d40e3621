"""Layer maps: which teacher layer each student layer reads."""


def ratio_map(teacher_layers: int, student_layers: int) -> list[int]:
    """`ratio`: student layer i reads round(i · (L_t − 1) / (L_s − 1)); a single student layer reads the last."""
    if student_layers == 1:
        return [teacher_layers - 1]
    return [round(i * (teacher_layers - 1) / (student_layers - 1)) for i in range(student_layers)]
