#!/usr/bin/env python3
"""A second reader of Pcow images, written from docs/format.md alone. It shares no code with the engine, and reads
slowly and simply: what the two disagree about is a fault of the engine, of the document, or of this file.

    reader.py IMAGE...     what each image holds: a line for each layer, with the CRC-32 of its bytes
    reader.py              for native/test/second_reader.h: image names come in, line by line; for each one goes out
                             layer SIZE NAME      then SIZE bytes; NAME is empty for the active layer
                             end                  or, in place of all that: error SENTENCE
"""

import ctypes
import fcntl
import os
import struct
import sys
import zlib

PAGE = 4096
BLOCKS_IN_A_CHUNK = 512
LAYERS_IN_A_CHAIN = 131070
LAZY = 1  # incompatible feature
F_GET_RW_HINT = 1035  # fcntl(2)
AT_EMPTY_PATH = 0x1000  # statx(2)
STATX_MNT_ID_UNIQUE = 0x4000
ACTIVE = ""
REMOTE = -1


class Damaged(Exception):
    """The image is not as the document says."""


def make_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC32C_TABLE = make_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ CRC32C_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def has_right_checksum(data, offset):
    (stored,) = struct.unpack_from("<I", data, offset)
    return crc32c(data[:offset] + bytes(4) + data[offset + 4 :]) == stored


def present_boot():
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))
    except OSError:
        return None


def round_up(value, step):
    return (value + step - 1) // step * step


class Superblock:
    """An intact slot: its magic number and checksum are right."""

    def __init__(self, page):
        self.incompatible, _, self.generation = struct.unpack_from("<QQQ", page, 16)
        self.uuid = page[40:56]
        self.shift, flags = struct.unpack_from("<II", page, 56)
        self.clean = bool(flags & 1)
        self.boot = page[64:80]
        self.directory, self.directory_length, self.sealed = struct.unpack_from("<QQQ", page, 80)
        (features,) = struct.unpack_from("<Q", page, 104)
        self.has_checksums = bool(features & 1)
        self.is_lazy = bool(self.incompatible & LAZY)
        self.source, self.source_length = struct.unpack_from("<QQ", page, 2312)
        self.base_uuid = page[112:128]
        self.base_layer, self.base_length = struct.unpack_from("<QI", page, 128)
        (self.cache_device,) = struct.unpack_from("<Q", page, 152)
        self.base_identity, self.cache_inode, self.cache_mount, self.cache_filesystem = struct.unpack_from(
            "<QQQQ", page, 224
        )
        self.base_path = page[256 : 256 + self.base_length]

    def is_possible(self, number):
        return (
            12 <= self.shift <= 21
            and self.generation < 1 << 63
            and self.generation % 2 == number
            and self.base_length <= 2048
            and 0 not in self.base_path
        )


def read_superblock(file, path):
    """The slot that counts."""
    pages = [os.pread(file, PAGE, number * PAGE) for number in (0, 1)]
    named = [page for page in pages if page[:8] == b"\x89PCOW\r\n\x1a" and len(page) == PAGE]
    if not named:
        raise Damaged(f"{path} is not an image")
    intact = {}
    for number, page in enumerate(pages):
        if page in named and has_right_checksum(page, 12):
            if struct.unpack_from("<I", page, 8) != (1,):
                raise Damaged(f"{path} has another version")
            intact[number] = Superblock(page)
    if not intact:
        raise Damaged(f"{path} has no superblock")
    newest = max(intact.values(), key=lambda slot: slot.generation)
    for number, slot in intact.items():
        unknown = slot.incompatible & ~LAZY
        if unknown and slot is not newest:
            continue  # the program that wrote the newer one has removed the feature
        if unknown:
            raise Damaged(f"{path} has a feature that is not known")
        if not slot.is_possible(number) or (slot.uuid, slot.shift) != (newest.uuid, newest.shift):
            raise Damaged(f"{path}: its superblocks are damaged")
    return newest


def has_write_hint(file):
    try:
        hint = fcntl.fcntl(file, F_GET_RW_HINT, bytes(8))
    except OSError:
        return False
    return struct.unpack("<Q", hint) != (0,)


def inode_of_filesystem(device):
    """Of the directory in /sys/fs that stands for the filesystem on this device, or 0."""
    try:
        block = os.path.basename(os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
    except OSError:
        return 0
    for kind in ("ext4", "xfs", "f2fs"):
        try:
            return os.stat(f"/sys/fs/{kind}/{block}").st_ino
        except OSError:
            pass
    return 0


def unique_mount(file):
    """The unique id of the mount through which the file is open, or 0."""
    buffer = ctypes.create_string_buffer(256)
    try:
        failed = ctypes.CDLL(None).statx(file, b"", AT_EMPTY_PATH, STATX_MNT_ID_UNIQUE, buffer)
    except AttributeError:
        return 0
    (mask,) = struct.unpack_from("<I", buffer, 0)
    return 0 if failed or not mask & STATX_MNT_ID_UNIQUE else struct.unpack_from("<Q", buffer, 144)[0]


def cache_has_survived(superblock, file):
    """Whether the page cache of the last writer is still there, or has reached the disk."""
    if superblock.boot == bytes(16) or superblock.boot != present_boot():
        return False
    fields = superblock.cache_device, superblock.cache_inode
    status = os.fstat(file)
    if not any(fields + (superblock.cache_mount, superblock.cache_filesystem)):
        return True
    if fields != (status.st_dev, status.st_ino):
        return False
    return (
        has_write_hint(file)
        or superblock.cache_filesystem != 0
        and superblock.cache_filesystem == inode_of_filesystem(status.st_dev)
        or superblock.cache_mount != 0
        and superblock.cache_mount == unique_mount(file)
    )


class Layer:
    """A record of the directory, and the layer's table."""

    def __init__(self, image, data, at):
        fields = struct.unpack_from("<QQqQQQII", data, at)
        self.id, self.parent, _, self.size, self.table_at, table_length, flags, name_length = fields
        self.image = image
        self.hidden = bool(flags & 1)
        self.checksums_at = (flags >> 2) * image.block if image.superblock.has_checksums else 0
        name_at = at + 64
        self.name = data[name_at : name_at + name_length].decode("utf-8")
        (identity,) = struct.unpack_from("<Q", data, at + 56)
        (of_uuid,) = struct.unpack_from("<Q", image.superblock.uuid, 0)
        self.identity = identity or (of_uuid + self.id) % (1 << 64)
        self.end = name_at + round_up(name_length, 8)
        self.entries = (self.size + image.block - 1) // image.block
        if table_length != round_up(self.entries * 8, image.block):
            raise Damaged(f"{image.path}: the table of layer {self.id} has the wrong length")
        self.verified = set()
        self.table = None

    def entry(self, number):
        """(written, index) of the block with this number, as the rule after a host crash has it. REMOTE stands for the
        index of a remote one."""
        if self.table is None:
            data = self.image.read(self.table_at, self.entries * 8)
            self.table = struct.unpack(f"<{self.entries}Q", data)
        word = self.table[number]
        written, durable, index = word & 0xFFFF, word >> 16 & 0xFFFF, word >> 32 & 0x3FFFFFFF
        if self.image.crashed:
            written = durable = written & durable
            if not written:
                return 0, 0
        self.image.check_entry(self, number, word >> 62, written, durable, index)
        return written, REMOTE if word >> 62 else index

    def verify(self, number, written, index):
        """Raises where the block has a checksum that its bytes do not have."""
        if not self.checksums_at or not index or number in self.verified:
            return
        chunk, within = divmod(number, BLOCKS_IN_A_CHUNK)
        page = self.image.read(self.checksums_at + chunk * PAGE, PAGE)
        if page == bytes(PAGE):
            return
        if not has_right_checksum(page, 0) or struct.unpack_from("<QQ", page, 8) != (self.id, chunk):
            return  # the page is damaged: the blocks that it should cover can be read
        (covered,) = struct.unpack_from("<H", page, 1024 + 2 * within)
        (checksum,) = struct.unpack_from("<I", page, 2048 + 4 * within)
        if covered:
            bits = [bit for bit in range(self.image.sub_blocks) if covered >> bit & 1]
            if covered & ~written or crc32c(b"".join(self.image.sub_block(index, bit) for bit in bits)) != checksum:
                raise Damaged(f"{self.image.path}: block {number} of layer {self.id} has another checksum")
        self.verified.add(number)


class Image:
    """One file, and the chain of bases below it."""

    def __init__(self, path, above=()):
        self.path = os.path.realpath(path)
        self.file = os.open(self.path, os.O_RDONLY)
        try:
            self.load(above)
        except BaseException:
            self.close()
            raise

    def close(self):
        os.close(self.file)
        if getattr(self, "base", None):
            self.base.close()

    def load(self, above):
        status = os.fstat(self.file)
        identity = status.st_dev, status.st_ino
        if identity in above:
            raise Damaged(f"{self.path}: its chain of bases leads back to it")
        self.size = status.st_size
        self.superblock = superblock = read_superblock(self.file, self.path)
        self.block = 1 << superblock.shift
        self.sub_block_size = max(self.block // 16, PAGE)
        self.sub_blocks = self.block // self.sub_block_size
        self.crashed = not superblock.clean and not cache_has_survived(superblock, self.file)
        self.base = None
        self.read_directory()
        if superblock.is_lazy:
            self.check_source()
        if superblock.base_length:
            self.open_base(above + (identity,))

    def read(self, offset, length):
        parts = []
        while length:
            part = os.pread(self.file, length, offset)
            if not part:
                raise Damaged(f"{self.path} ends before byte {offset}")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def sub_block(self, index, number):
        return self.read(index * self.block + number * self.sub_block_size, self.sub_block_size)

    def check_source(self):
        superblock = self.superblock
        data = self.read(superblock.source, superblock.source_length)
        (length,) = struct.unpack_from("<Q", data, 16)
        if data[:8] != b"PCOWSRC\0" or not has_right_checksum(data, 8) or length != superblock.source_length - 32:
            raise Damaged(f"{self.path}: its source is damaged")

    def read_directory(self):
        superblock = self.superblock
        data = self.read(superblock.directory, superblock.directory_length)
        if data[:8] != b"PCOWDIR\0" or not has_right_checksum(data, 8) or data[16:32] != superblock.uuid:
            raise Damaged(f"{self.path}: its directory is damaged")
        (count,) = struct.unpack_from("<I", data, 12)
        (self.active,) = struct.unpack_from("<Q", data, 40)
        self.layers = {}
        at = 64
        for _ in range(count):
            layer = Layer(self, data, at)
            at = layer.end
            if self.crashed and layer.id != self.active and layer.id > superblock.sealed:
                layer.hidden = True
            self.layers[layer.id] = layer
        if at != len(data) or self.active not in self.layers:
            raise Damaged(f"{self.path}: its directory is damaged")

    def open_base(self, above):
        superblock = self.superblock
        path = os.path.join(os.path.dirname(self.path), os.fsdecode(superblock.base_path))
        self.base = base = Image(path, above)
        if base.superblock.uuid != superblock.base_uuid or base.block != self.block:
            raise Damaged(f"{self.path}: {base.path} is not its base")
        layer = base.layers.get(superblock.base_layer)
        if not layer or layer.id == base.active:
            raise Damaged(f"{self.path}: {base.path} has no frozen layer {superblock.base_layer}")
        children = sum(other.parent == layer.id for other in base.layers.values())
        if layer.hidden and children < 2:
            raise Damaged(f"{self.path}: layer {layer.id} of {base.path} was deleted")
        if superblock.base_identity not in (0, layer.identity):
            raise Damaged(f"{self.path}: layer {layer.id} of {base.path} is another one")

    def check_entry(self, layer, number, top, written, durable, index):
        """Raises unless the entry is sound."""
        outside = (1 << self.sub_blocks) - 1
        first = (2 * PAGE + self.block - 1) // self.block
        bad_index = index and (not written or index < first or (index + 1) * self.block > self.size)
        bad_remote = top and (not self.superblock.is_lazy or top > 1 or index or not written or durable != written)
        if bad_remote or written & ~outside or durable & ~written or bad_index:
            raise Damaged(f"{self.path}: entry {number} of layer {layer.id} is damaged")

    def parent_of(self, layer):
        if layer.parent:
            return self.layers[layer.parent]
        return self.base.layers[self.superblock.base_layer] if self.base else None

    def named_layers(self):
        """The active layer, then every snapshot."""
        frozen = [layer for layer in self.layers.values() if layer.id != self.active and not layer.hidden]
        return [self.layers[self.active]] + frozen


def chain_of(layer):
    count = 0
    while layer:
        count += 1
        if count > LAYERS_IN_A_CHAIN:
            raise Damaged(f"{layer.image.path}: the chain is too long")
        yield layer
        layer = layer.image.parent_of(layer)


def read_block(chain, number):
    """All bytes of a block, as the first layer of the chain has them."""
    image = chain[0].image
    parts = [bytes(image.sub_block_size)] * image.sub_blocks
    missing = (1 << image.sub_blocks) - 1
    for layer in chain:
        written, index = layer.entry(number) if number < layer.entries else (0, 0)
        found = written & missing
        if found and index == REMOTE:
            raise Damaged(f"{layer.image.path}: block {number} of layer {layer.id} has not been fetched yet")
        if found and index:
            layer.verify(number, written, index)
            block = layer.image.read(index * image.block, image.block)
            for bit in range(image.sub_blocks):
                if found >> bit & 1:
                    parts[bit] = block[bit * image.sub_block_size : (bit + 1) * image.sub_block_size]
        missing &= ~found
        if not missing:
            break
    return b"".join(parts)


def read_layer(layer):
    chain = list(chain_of(layer))
    return b"".join(read_block(chain, number) for number in range(layer.entries))[: layer.size]


def contents(path):
    """(name, bytes) of the active layer and of every snapshot."""
    image = Image(path)
    try:
        for layer in image.named_layers():
            yield ACTIVE if layer.id == image.active else layer.name, read_layer(layer)
    finally:
        image.close()


def serve():
    out = sys.stdout.buffer
    for line in sys.stdin.buffer:
        try:
            found = list(contents(os.fsdecode(line.rstrip(b"\n"))))
            for name, data in found:
                out.write(b"layer %d %s\n" % (len(data), name.encode()))
                out.write(data)
            out.write(b"end\n")
        except (Damaged, OSError, ValueError, struct.error) as error:
            out.write(b"error %s\n" % str(error).encode("utf-8", "surrogateescape"))
        out.flush()


def main():
    if len(sys.argv) == 1:
        return serve()
    for path in sys.argv[1:]:
        for name, data in contents(path):
            print(f"{path}{'@' + name if name else ''}: {len(data)} bytes, CRC-32 {zlib.crc32(data):08x}")


if __name__ == "__main__":
    main()
