"""What Softlabels costs, in ratios: ``python -m benchmarks [--quick] [NAMES...]``, or ``make bench``.

Each module here measures one family and gives one table. Both sides of a ratio are measured in turn, round after
round, in one run on one machine, so that what a noisy machine does to one side it does to the other.
"""
