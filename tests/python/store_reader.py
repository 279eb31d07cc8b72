"""A second reader of stores, written from docs/format.md alone, with numpy. It is slow, and here to show that the
document says enough; it checks what it needs to decode right bytes (checksums, sizes, lanes, hashes), not all that a
reader must reject."""

import json
import struct

import numpy as np
import xxhash
import zstandard

MAGIC = bytes.fromhex("8b4357530d0a1a0a")
UNITS = [1, 1, 1, 2, 2, 4, 4, 8, 8, 1, 1, 2, 2, 4, 8, 1, 1, 1, 1, 1, 1, 4]  # of the dtype codes 0 to 21
RAW, ZSTD, SPLIT, QUANT = range(4)
MASK64, MASK128 = (1 << 64) - 1, (1 << 128) - 1
KEY = 0x6A09E667F3BCC908, 0xBB67AE8584CAA73B


class Damaged(Exception):
    pass


def need(holds, what):
    if not holds:
        raise Damaged(what)


def xxh3(data, seed=0):
    return xxhash.xxh3_64_intdigest(data, seed=seed)


def content_hash(data, first_word=0):
    words = np.frombuffer(data + bytes(-len(data) % 16), dtype="<u8").reshape(-1, 2)
    with np.errstate(over="ignore"):
        j = 2 * (np.arange(len(words), dtype=np.uint64) + np.uint64(first_word))
        keys = []
        for which in range(2):
            y = np.uint64(KEY[which]) + (j >> np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            z = (y ^ (y >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
            keys.append(z ^ (z >> np.uint64(29)))
        lo, hi = words[:, 0] + keys[0], words[:, 1] + keys[1]
    return sum(int(a) * int(b) for a, b in zip(lo, hi)) & MASK128


def align(x, n):
    return -(-x // n) * n


class Store:
    """Of the bytes of a store. tensors: (name, dtype code, begin in the logical data) in their order."""

    def __init__(self, data):
        self.data = data
        trailer = data[-128:]
        need(trailer[:8] == MAGIC, "no magic")
        need(xxh3(trailer[:120]) == struct.unpack("<Q", trailer[120:])[0], "trailer_xxh3")
        version, size, _, incompat = struct.unpack_from("<IIQQ", trailer, 8)
        need(version == 0 and size == 128 and incompat < 4, "version or feature")
        fields = struct.unpack_from("<9Q", trailer, 32)
        file_bytes, self.logical_bytes, front_bytes, index_at, index_bytes, front_hash, index_hash = fields[:7]
        need(file_bytes == len(data) and index_at + index_bytes == file_bytes - 128, "sizes")
        need(xxh3(data[:front_bytes]) == front_hash, "front_xxh3")
        index = data[index_at : index_at + index_bytes]
        need(xxh3(index) == index_hash, "index_xxh3")
        self.content = fields[7] | fields[8] << 64
        self.read_index(index)

    def read_index(self, index):
        header_bytes, tensors, tables, chunks, _ = struct.unpack_from("<QIIQQ", index)
        self.header = index[32 : 32 + header_bytes]
        at = 32 + align(header_bytes, 8)
        need(len(index) == at + 56 * tensors + 48 * chunks + 128 * tables, "parts of the index")
        names = json.loads(self.header[8:])
        names.pop("__metadata__", None)
        order = sorted(names, key=lambda name: tuple(names[name]["data_offsets"]))
        self.tensors = []
        for i in range(tensors):
            values = struct.unpack_from("<QQQQQIIBBB", index, at + 56 * i)
            keys = "first_chunk chunk_count hash_lo hash_hi row_elems chunk_bytes table dtype codec quant_bits".split()
            begin, end = names[order[i]]["data_offsets"]
            self.tensors.append(dict(zip(keys, values), name=order[i], begin=begin, end=end))
        at += 56 * tensors
        self.chunks = []
        for i in range(chunks):
            values = struct.unpack_from("<QIIQB7xQQ", index, at + 48 * i)
            self.chunks.append(dict(zip("offset stored logical xxh3 codec hash_lo hash_hi".split(), values), index=i))
        at += 48 * chunks
        self.tables = [index[at + 128 * i : at + 128 * (i + 1)] for i in range(tables)]

    def logical(self):
        """The bytes of the logical file."""
        out = self.header + b"".join(self.tensor(t) for t in self.tensors)
        need(len(out) == self.logical_bytes, "logical_bytes")
        hashes = b"".join(struct.pack("<QQ", t["hash_lo"], t["hash_hi"]) for t in self.tensors)
        need(content_hash(hashes) == self.content, "content_hash of the file")
        return out

    def tensor(self, t):
        out, total = b"", 0
        for chunk in self.chunks[t["first_chunk"] : t["first_chunk"] + t["chunk_count"]]:
            decoded = self.chunk(t, chunk, len(out))
            hashed = content_hash(decoded, len(out) // 16)
            need(hashed == chunk["hash_lo"] | chunk["hash_hi"] << 64, f"content_hash of chunk {chunk['index']}")
            out, total = out + decoded, total + hashed & MASK128
        need(total == t["hash_lo"] | t["hash_hi"] << 64, f"content_hash of {t['name']}")
        need(len(out) == t["end"] - t["begin"], f"size of {t['name']}")
        return out

    def chunk(self, t, chunk, first_byte):
        stored = self.data[chunk["offset"] : chunk["offset"] + chunk["stored"]]
        need(xxh3(stored, chunk["index"]) == chunk["xxh3"], f"xxh3 of chunk {chunk['index']}")
        if chunk["codec"] == RAW:
            return stored
        if chunk["codec"] == ZSTD:
            return zstandard.ZstdDecompressor().decompress(stored, max_output_size=chunk["logical"])
        coded = Coded(stored, self.tables[t["table"]])
        decoded = coded.split() if chunk["codec"] == SPLIT else coded.quant(t, first_byte // UNITS[t["dtype"]])
        need(len(decoded) == chunk["logical"], f"size of chunk {chunk['index']}")
        return decoded


def code_of(packed):
    """(symbols, lengths) of all windows of 12 bits, the next bit of the stream lowest."""
    lengths = [packed[i // 2] >> (4 * (i % 2)) & 15 for i in range(256)]
    symbols, bits, code = np.zeros(4096, np.uint8), np.zeros(4096, np.int64), 0
    for length in range(1, 13):
        for symbol in (s for s in range(256) if lengths[s] == length):
            reversed_word = int(f"{code:0{length}b}"[::-1], 2)
            symbols[reversed_word :: 1 << length], bits[reversed_word :: 1 << length] = symbol, length
            code += 1
        code *= 2
    need(code == 1 << 13, "code is not complete")
    return symbols, bits


class Coded:
    """A split or quant chunk."""

    def __init__(self, stored, table):
        self.stored, self.table, self.at = stored, table, 32
        head = struct.unpack_from("<IHBBIIB7sHB", stored)
        self.count, self.lane, self.unit, self.flags, self.tiles, self.words = head[:6]
        self.constant, self.values, self.scale_base, self.scale_bits = head[6:]

    def section(self, size):
        begin = align(self.at, 16)
        need(not any(self.stored[self.at : begin]), "bytes between sections")
        self.at = begin + size
        return self.stored[begin : self.at]

    def symbols(self):
        width = 2 if self.flags & 1 else 1
        directory = self.section(self.tiles * (4 + 2 + 32 * width))
        first = np.frombuffer(directory, "<u4", self.tiles).astype(np.int64)
        shortest = np.frombuffer(directory, "<u2", self.tiles, 4 * self.tiles).astype(np.int64)
        excess = np.frombuffer(directory, f"<u{width}", 32 * self.tiles, 6 * self.tiles).astype(np.int64)
        lengths = shortest[:, None] + excess.reshape(-1, 32)
        streams = self.section(4 * self.words + 8)
        need(self.at == len(self.stored), "sections do not fill the chunk")
        bits = np.unpackbits(np.frombuffer(streams, np.uint8), bitorder="little").astype(np.int64)
        symbol_of, bits_of = code_of(self.table)
        ends = 32 * first[:, None] + lengths.cumsum(1)
        at = ends - lengths
        elements = np.arange(self.count)
        tile, lane = elements // (32 * self.lane), elements // 8 % 32
        place = elements % (32 * self.lane) // 256 * 8 + elements % 8
        decoded = np.zeros((self.tiles, 32, self.lane), np.uint8)
        wanted = np.zeros((self.tiles, 32), np.int64)
        np.add.at(wanted, (tile, lane), 1)
        weights = 1 << np.arange(12)
        for k in range(self.lane):
            live = wanted > k
            need((at[live] + 12 <= len(bits)).all(), "a lane leaves the streams")
            window = (bits[at[live][:, None] + np.arange(12)] * weights).sum(1)
            decoded[live, k] = symbol_of[window]
            at[live] += bits_of[window]
        need((at == ends).all(), "a lane does not end with its last bit")
        return decoded[tile, lane, place]

    def split(self):
        planes = [
            np.full(self.count, self.values[p], np.uint8)
            if self.constant >> p & 1
            else np.frombuffer(self.section(self.count), np.uint8)
            for p in range(self.unit - 1)
        ]
        symbols = self.symbols()
        if self.unit == 1:
            return symbols.tobytes()
        top = symbols.astype(np.uint16) << 8 | planes[-1]
        top = top >> 1 | top << 15  # it was rotated left by one
        bytes_of = [*planes[:-1], (top & 255).astype(np.uint8), (top >> 8).astype(np.uint8)]
        return np.stack(bytes_of, 1).tobytes()

    def quant(self, t, first_elem):
        rows = (first_elem + np.arange(self.count)) // t["row_elems"]
        rows -= rows[0]
        packed = self.section(-(-int(rows[-1] + 1) * self.scale_bits // 8))
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little").astype(np.uint32)
        fields = [
            int((bits[i * self.scale_bits : (i + 1) * self.scale_bits] << np.arange(self.scale_bits)).sum())
            for i in range(rows[-1] + 1)
        ]
        scales = ((np.array(fields, np.uint32) + np.uint32(self.scale_base)) << np.uint32(18)).view(np.float32)
        values = (self.symbols().astype(np.float32) - np.float32(128)) * scales[rows]
        if t["dtype"] == 11:
            return values.astype(np.float16).tobytes()
        if t["dtype"] == 13:
            return values.tobytes()
        wide = values.view(np.uint32)
        return ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype(np.uint16).tobytes()
