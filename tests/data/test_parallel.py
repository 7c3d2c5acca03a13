import threading
import time

import pytest

from vssm.data.parallel import map_ahead


def test_order_is_kept_however_long_each_takes():
    def slow_first(number):
        time.sleep(0.02 if number % 4 == 0 else 0)
        return number * number

    assert list(map_ahead(slow_first, range(20), threads=4, ahead=6)) == [number * number for number in range(20)]


def test_it_runs_ahead_of_its_reader_and_no_further():
    taken, done, release = [], [], threading.Event()

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    def work(number):
        if number:
            release.wait(5)
        done.append(number)
        return number

    results = map_ahead(work, items(), threads=2, ahead=5)
    assert next(results) == 0
    assert taken == [0, 1, 2, 3, 4]
    release.set()
    deadline = time.monotonic() + 5
    while len(done) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(done) == [0, 1, 2, 3, 4], "worked on while the reader did other things"
    assert len(taken) == 5
    results.close()
    assert len(taken) == 5


def test_errors_are_raised_in_their_place():
    results = map_ahead(lambda number: 1 // number, [2, 1, 0, 1], threads=2, ahead=3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("bad", [{"threads": 0, "ahead": 1}, {"threads": 1, "ahead": 0}])
def test_bad_numbers(bad):
    with pytest.raises(ValueError, match="must be at least 1"):
        next(map_ahead(str, [], **bad))
