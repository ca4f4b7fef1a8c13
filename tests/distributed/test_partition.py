"""The arithmetic of parts and trees, over sizes that no machine here could hold."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compressrs.distributed.layout import Layout
from compressrs.distributed.partition import (
    distribute,
    piece_count,
    pieces,
    shares,
    split,
    split_in_pieces,
    whole_in_pieces,
)
from compressrs.distributed.tree import TreeSum, cover, middle
from tests.reference.distributed import tree_sum

sizes = st.lists(st.one_of(st.integers(0, 500), st.integers(2**31 - 5, 2**40)), min_size=1)


@given(sizes, st.integers(1, 1024), st.sampled_from([1, 4, 256, 2**15]), st.data())
def test_parts_make_up_all_tensors(lengths, ranks, block, data):
    weights = [data.draw(st.sampled_from([2, 4, 8])) for _ in lengths]
    parts = split(lengths, weights, ranks, block)
    assert parts == sorted(parts)
    for tensor, length in enumerate(lengths):
        own = [part for part in parts if part.tensor == tensor]
        assert own[0].start == 0
        assert own[-1].stop == length
        assert all(a.stop == b.start and a.owner < b.owner for a, b in pairwise(own))
        assert all(part.start % block == 0 for part in own)
    total = sum(n * w for n, w in zip(lengths, weights, strict=True))
    loads = [0] * ranks
    for part in parts:
        loads[part.owner] += (part.stop - part.start) * weights[part.tensor]
    assert max(loads) <= total / ranks + 8 * (block + 2)


@given(sizes, st.integers(1, 300), st.sampled_from([1, 2**15]), st.booleans())
def test_pieces_make_up_the_parts_of_each_rank(lengths, ranks, block, whole):
    count = piece_count(sum(lengths), ranks)
    assert 1 <= count <= 32
    costs = [n + 1 for n in lengths]
    if whole:
        parts = distribute(lengths, costs, ranks)
        numbers = whole_in_pieces(parts, costs, count)
    else:
        parts, numbers = split_in_pieces(lengths, [4] * len(lengths), ranks, block, count)
    assert len(parts) == len(numbers) <= 4096 + 2 * ranks + len(lengths)
    order = [(part.owner, k) for part, k in zip(parts, numbers, strict=True)]
    assert order == sorted(order)
    assert all(0 <= owner < ranks and 0 <= k < count for owner, k in order)
    for tensor, length in enumerate(lengths):
        own = [part for part in parts if part.tensor == tensor]
        assert own[0].start == 0
        assert own[-1].stop == length
        assert all(a.stop == b.start for a, b in pairwise(own))


@given(sizes, st.integers(1, 64), st.integers(1, 5))
def test_layouts_of_any_size(lengths, ranks, count):
    dtypes = [np.dtype(("float32", "float64", "float16")[i % 3]) for i in range(len(lengths))]
    parts, numbers = split_in_pieces(lengths, [4] * len(lengths), ranks, 2**15, count)
    layout = Layout(parts, numbers, count, dtypes, ranks)
    assert sum(layout.totals.values()) == sum(lengths)
    assert sorted(n for of in layout.numbers for k in of for n in k) == list(range(len(parts)))
    # Places follow one another in each dtype, those of a rank and of its pieces side by side.
    for dtype, total in layout.totals.items():
        places = [
            place
            for of_rank in layout._of_piece
            for of_piece in of_rank
            for kind, place in of_piece.items()
            if kind == dtype
        ]
        assert [p.start for p in places] == [0, *(p.stop for p in places)][: len(places)]
        assert not places or places[-1].stop == total


@given(sizes, st.integers(1, 64))
def test_whole_tensors_are_spread(lengths, ranks):
    parts = distribute(lengths, [n + 1 for n in lengths], ranks)
    assert sorted(part.tensor for part in parts) == list(range(len(lengths)))
    loads = [0] * ranks
    for part in parts:
        loads[part.owner] += part.stop - part.start + 1
    # Of the largest first: no more than the mean and one tensor.
    assert max(loads) <= sum(n + 1 for n in lengths) / ranks + max(lengths) + 1


@given(st.integers(1, 200), st.integers(1, 40))
def test_shares_are_covered_by_nodes(total, ranks):
    own = shares(total, ranks)
    assert [i for share in own for i in share] == list(range(total))
    for share in own:
        nodes = cover(share.start, share.stop, total)
        assert [i for low, high in nodes for i in range(low, high)] == list(share)
    if total % ranks == 0 and ranks & (ranks - 1) == 0 and total & (total - 1) == 0:
        assert all(len(cover(s.start, s.stop, total)) == 1 for s in own)


@given(st.integers(1, 60), st.integers(0, 2**32))
def test_sums_do_not_depend_on_the_order_of_leaves(total, seed):
    rng = np.random.default_rng(seed)
    leaves = rng.standard_normal(total).astype(np.float32)
    order = rng.permutation(total).tolist()
    tree = TreeSum(total, lambda a, b: a + b)
    for i in order:
        taken = tree.take_left(i)
        if taken is None:
            tree.insert((i, i + 1), leaves[i])
        else:
            node, left = taken
            tree.insert(node, left + leaves[i])
    assert tree.result() == tree_sum(leaves)


@given(st.integers(2, 300))
def test_leaves_in_order_need_few_buffers(total):
    tree = TreeSum(total, lambda a, b: a + b)
    most = 0
    for i in range(total):
        tree.insert((i, i + 1), 1)
        most = max(most, len(tree.nodes))
    assert tree.result() == total
    assert most <= total.bit_length()
    assert 0 < middle(0, total) < total


@given(st.integers(0, 2**40), st.integers(2**20, 2**31))
def test_messages_are_divided(length, limit):
    found = pieces(length, limit)
    assert sum(high - low for low, high in found) == length
    assert all(0 < high - low <= limit for low, high in found)
