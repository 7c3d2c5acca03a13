import re

from vssm.figures.matrix import confusion_matrix


def cells(drawing):
    return re.findall(r"<td[^>]*>(?:[^<]*)</td>", drawing)


def test_numbers_names_and_colours():
    drawing = confusion_matrix([[3, 1], [0, 2]], [4, 2], ["<cat>", "dog"])
    hit, miss, empty, sure = [cell for cell in cells(drawing) if "quiet" not in cell]
    assert 'class="hit"' in hit and ">3<" in hit and "--share:89%" in hit  # 15 + 85 * sqrt(3/4)
    assert 'title="&lt;cat&gt;, predicted dog: 1 of 4 (25.0%)"' in miss and 'class="miss"' in miss
    assert empty == "<td></td>"
    assert 'class="hit strong"' in sure and "--share:100%" in sure
    assert drawing.count('scope="row"') == drawing.count('scope="col"') == 2


def test_a_share_is_of_all_images_of_the_class_also_when_only_some_classes_are_shown():
    assert "dog: 1 of 40 (2.5%)" in confusion_matrix([[3, 1], [0, 2]], [40, 2], ["cat", "dog"])


def test_many_classes_are_small_and_without_numbers():
    counts = [[int(i == j) for j in range(100)] for i in range(100)]
    drawing = confusion_matrix(counts, [1] * 100, [f"class {i}" for i in range(100)])
    assert drawing.count('class="hit strong"') == 100
    assert "matrix tiny" in drawing and ">1</td>" not in drawing
    assert len(drawing) < 150_000
