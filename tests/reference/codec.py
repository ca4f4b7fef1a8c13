"""The streams of compressed checkpoints, decoded as their format is described."""

import numpy as np


def number(data):
    """Take a number in groups of 7 bits, the lowest first."""
    n = shift = 0
    while True:
        byte = data.pop(0)
        n |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return n


def table(data):
    """Take the frequencies of a block's symbols, which add up to 4096."""
    symbols, end = [], 0
    for _ in range(number(data)):
        start = end + number(data)
        end = start + number(data)
        symbols += range(start, end)
    frequencies = [number(data) for _ in symbols[:-1]]
    frequencies.append(4096 - sum(frequencies))
    return dict(zip(symbols, frequencies, strict=True))


def rans(data, n, lanes):
    frequencies = table(data)
    slots, starts, total = [], {}, 0
    for symbol, frequency in frequencies.items():
        starts[symbol] = total
        total += frequency
        slots += [symbol] * frequency
    states = [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(lanes)]
    words = np.frombuffer(bytes(data[4 * lanes :]), "<u2").tolist()
    out = []
    for i in range(n):
        x = states[i % lanes]
        symbol = slots[x % 4096]
        x = frequencies[symbol] * (x >> 12) + x % 4096 - starts[symbol]
        if x < 1 << 16:
            x = x << 16 | words.pop(0)
        states[i % lanes] = x
        out.append(symbol)
    assert words == [] and states == [1 << 16] * lanes
    return out


def block(data):
    """Take a block from a stream, as its symbols."""
    form, n = data.pop(0), number(data)
    size = number(data)
    payload = data[:size]
    del data[:size]
    if form == 0:
        return payload
    if form == 1:
        return payload * n
    if form in (2, 3):
        return rans(payload, n, {2: 4, 3: 32}[form])
    bits = {4: 1, 5: 2, 6: 4}[form]
    return [byte >> i & ((1 << bits) - 1) for byte in payload for i in range(0, 8, bits)][:n]


def planes(stream, width, rotate):
    """Return the bytes of the elements of a stream."""
    data, out = list(stream), []
    while data:
        blocks = [block(data) for _ in range(width)]
        for parts in zip(*blocks, strict=True):
            word = int.from_bytes(bytes(parts), "big")
            if rotate and width > 1:
                word = word >> 1 | (word & 1) << (8 * width - 1)
            out.append(word.to_bytes(width, "little"))
    return b"".join(out)


def bits(places, values, size):
    """Return elements that are values where a bit is set, and 0 elsewhere."""
    out, values = [], list(values)
    for i in range(size):
        out.append(values.pop(0) if places[i // 8] >> (i % 8) & 1 else 0)
    assert values == []
    return out


def gaps(places, values, size):
    """Return elements that are values behind gaps of zeros; 255 is a gap with no value."""
    out, values = [], list(values)
    for gap in places:
        out += [0] * gap
        if gap != 255:
            out.append(values.pop(0))
    assert values == []
    return out + [0] * (size - len(out))
