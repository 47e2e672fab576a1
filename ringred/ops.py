"""The reduction operators, with the numbers that Horovod gives them."""

from __future__ import annotations

import enum


class Op(enum.IntEnum):
    """How allreduce combines the values of all ranks.

    Half types (float16, bfloat16) are combined in float32 and rounded once. Integer averages truncate toward zero;
    integer sums and products wrap, and so does the sum in an average of 64-bit integers. A NaN on any rank gives NaN,
    also with Min and Max. Booleans: Sum and Max are "any", Product and Min are "all", Average is not defined. Complex
    numbers have no Min and Max.

    Adasum (see ringred.adasum) is for the asynchronous and grouped forms, and for arrays of floats.
    """

    Average = 0
    Sum = 1
    Adasum = 2
    Min = 3
    Max = 4
    Product = 5


Average = Op.Average
Sum = Op.Sum
Adasum = Op.Adasum
Min = Op.Min
Max = Op.Max
Product = Op.Product
