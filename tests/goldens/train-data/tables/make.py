"""Makes the tables here, one and the same in the ways of parquet and arrow, and rows.json (needs pyarrow, datasets).

    python make.py
"""
import json
import random
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
random.seed(1)
WORDS = "Lorem ipsum dolor sit amet, Grüße, 你好, \"q\"\n".split(" ")


def words(count):
    return " ".join(random.choice(WORDS) for _ in range(count))


def row(at):
    return {
        "instruction": None if at % 5 == 3 else words(at % 4),
        "output": "the same" if at % 3 else words(6),
        "conversations": [{"from": "human", "value": words(2)}, {"from": "gpt", "value": None if at == 4 else words(3)}][
            : at % 4
        ]
        if at != 6
        else None,
        "history": [[words(1), words(1)] for _ in range(at % 3)],
        "input_ids": [at * 7 + place for place in range(at % 6)],
        "labels": [-100, at, None] if at % 2 else [],
        "score": at / 64 - 1,
        "short": at / 4,
        "is_good": None if at == 2 else at % 2 == 0,
        "large": 2**63 + at,
        "small": -at,
        "nothing": None,
        "meta": None if at == 5 else {"tags": [f"t{at}"] if at % 2 else None, "deep": {"n": at}},
    }


ROWS = [row(at) for at in range(11)]
MESSAGE = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
SCHEMA = pa.schema(
    [
        ("instruction", pa.string()),
        ("output", pa.string()),
        ("conversations", MESSAGE),
        ("history", pa.list_(pa.list_(pa.string()))),
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int64())),
        ("score", pa.float64()),
        ("short", pa.float32()),
        ("is_good", pa.bool_()),
        ("large", pa.uint64()),
        ("small", pa.int8()),
        ("nothing", pa.null()),
        ("meta", pa.struct([("tags", pa.list_(pa.string())), ("deep", pa.struct([("n", pa.int16())]))])),
    ]
)
TABLE = pa.Table.from_pylist(ROWS, SCHEMA)
(HERE / "rows.json").write_text(json.dumps(ROWS, ensure_ascii=False, separators=(",", ":")) + "\n")

SMALL = dict(row_group_size=6, data_page_size=1, write_batch_size=4, write_statistics=False, store_schema=False)
pq.write_table(TABLE, HERE / "snappy.parquet", compression="snappy", **SMALL)
pq.write_table(TABLE, HERE / "gzip.parquet", compression="gzip", use_dictionary=False, **SMALL)
pq.write_table(TABLE.select(["conversations", "meta"]), HERE / "zstd.parquet", compression="zstd", **SMALL)
pq.write_table(TABLE, HERE / "lz4.parquet", compression="lz4", data_page_version="2.0", **SMALL)
LEAVES = {
    "instruction": "DELTA_BYTE_ARRAY",
    "output": "DELTA_LENGTH_BYTE_ARRAY",
    "history.list.element.list.element": "DELTA_LENGTH_BYTE_ARRAY",
    "input_ids.list.element": "DELTA_BINARY_PACKED",
    "labels.list.element": "DELTA_BINARY_PACKED",
    "score": "BYTE_STREAM_SPLIT",
    "short": "BYTE_STREAM_SPLIT",
    "is_good": "RLE",
    "large": "DELTA_BINARY_PACKED",
    "small": "BYTE_STREAM_SPLIT",
}
pq.write_table(
    TABLE, HERE / "delta.parquet", compression="none", use_dictionary=False, column_encoding=LEAVES,
    data_page_version="2.0", version="2.6", **SMALL,
)
# As `datasets` writes them itself.
SET = datasets.Dataset(TABLE, fingerprint="tables")
SET.to_parquet(str(HERE / "datasets.parquet"))
PLAIN = SET.remove_columns("large")
writer = datasets.arrow_writer.ArrowWriter(path=str(HERE / "datasets.arrow"), features=PLAIN.features, writer_batch_size=4)
for values in PLAIN:
    writer.write(values)
writer.finalize()


def arrow(name, table, new=pa.ipc.new_stream, **options):
    with new(HERE / name, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as out:
        out.write_table(table, max_chunksize=6)


def cast(**types):
    return TABLE.cast(pa.schema([pa.field(f.name, types.get(f.name, f.type)) for f in SCHEMA]))


arrow("lz4.arrow", TABLE, compression="lz4")
BOOK = pa.dictionary(pa.int8(), pa.string())
views = cast(instruction=pa.string_view(), output=BOOK, history=pa.large_list(pa.list_(pa.large_string())))
arrow("zstd.arrow", views, new=pa.ipc.new_file, compression="zstd", unify_dictionaries=True)
deltas = pa.Table.from_batches([b for b in cast(output=BOOK).to_batches(max_chunksize=6)])
arrow("delta.arrow", deltas, emit_dictionary_deltas=True)
for path in sorted(HERE.glob("*.*")):
    print(path.name, path.stat().st_size)
