"""What the forms are called that a report of a training has beside float32, bfloat16 and the variant."""

from typing import Final

PTQ: Final = "ptq"
"""The post-training quantization that training began from."""

TRAINED: Final = "trained"
"""What was trained, where the start was published instead."""

TAKEN = (PTQ, TRAINED)
