"""A small set of cases in which every two values of any two parameters meet."""

from itertools import combinations, product


def pairwise(*parameters: list) -> list[tuple]:
    """Greedy cover, the same in every run: each case is the one that meets the most pairs not met before."""
    missing = {
        ((i, a), (j, b))
        for (i, first), (j, second) in combinations(enumerate(parameters), 2)
        for a, b in product(first, second)
    }
    cases = []
    while missing:
        best = max(product(*parameters), key=lambda case: len(_pairs(case) & missing))
        cases.append(best)
        missing -= _pairs(best)
    return cases


def _pairs(case: tuple) -> set:
    return set(combinations(enumerate(case), 2))
