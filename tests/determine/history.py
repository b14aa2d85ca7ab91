"""Writes records as the Python service keeps its history: Parquet by pyarrow, in four layouts.

Reads from standard input {"folder": F, "layouts": [[{"record_type", "stamp", "uris"}, ...] x 4]}: the uris are the subject's,
or parent's and root's; null for none.
"""

import datetime
import json
import os
import sys

import pyarrow
import pyarrow.dataset
import pyarrow.parquet

REFERENCE = pyarrow.struct([("cid", pyarrow.string()), ("uri", pyarrow.string()), ("py_type", pyarrow.string())])


def reference(uri):
    return None if uri is None else {"cid": "bafy", "uri": uri, "py_type": "com.atproto.repo.strongRef"}


def subjects(record):
    """Subject and reply of a record, as objects."""
    uris = [reference(uri) for uri in record["uris"]]
    if len(uris) == 2:
        return None, {"parent": uris[0], "root": uris[1]}
    return (uris[0] if uris else None), None


def texts(folder, records):
    """Everything is text, the kinds a dictionary; the date is a column. Snappy."""
    pairs = [subjects(record) for record in records]
    dumped = [[None if part is None else json.dumps(part) for part in column] for column in zip(*pairs)]
    kinds = pyarrow.array([record["record_type"] for record in records]).dictionary_encode()
    table = pyarrow.table({
        "record_type": kinds,
        "subject": pyarrow.array(dumped[0], pyarrow.large_string()),
        "reply": pyarrow.array(dumped[1], pyarrow.large_string()),
        "synctimestamp": [record["stamp"] for record in records],
        "partition_date": [record["stamp"][:10] for record in records],
    })
    pyarrow.parquet.write_table(table, os.path.join(folder, "texts.parquet"), row_group_size=300)


def structs(folder, records):
    """Subjects are structs; the date is only in the folder's name. zstd."""
    pairs = [subjects(record) for record in records]
    table = pyarrow.table({
        "record_type": [record["record_type"] for record in records],
        "subject": pyarrow.array([pair[0] for pair in pairs], REFERENCE),
        "reply": pyarrow.array([pair[1] for pair in pairs], pyarrow.struct([("parent", REFERENCE), ("root", REFERENCE)])),
        "partition_date": [record["stamp"][:10] for record in records],
    })
    options = pyarrow.dataset.ParquetFileFormat().make_write_options(compression="zstd")
    partitioning = pyarrow.dataset.partitioning(pyarrow.schema([("partition_date", pyarrow.string())]), flavor="hive")
    pyarrow.dataset.write_dataset(table, os.path.join(folder, "structs"), format="parquet", file_options=options,
                                  partitioning=partitioning, max_partitions=1000)


def times(folder, records):
    """The time is one; parent and root are JSON text in a struct. gzip, pages of the second version."""
    pairs = [subjects(record) for record in records]
    dump = lambda part: None if part is None else json.dumps(part)
    replies = [reply and {name: dump(part) for name, part in reply.items()} for _, reply in pairs]
    stamps = [datetime.datetime.strptime(record["stamp"], "%Y-%m-%d-%H:%M:%S") for record in records]
    table = pyarrow.table({
        "synctimestamp": pyarrow.array(stamps, pyarrow.timestamp("us")),
        "reply": pyarrow.array(replies, pyarrow.struct([("parent", pyarrow.string()), ("root", pyarrow.string())])),
        "subject": pyarrow.array([dump(pair[0]) for pair in pairs], pyarrow.string_view()),
        "record_type": [record["record_type"] for record in records],
    })
    pyarrow.parquet.write_table(table, os.path.join(folder, "times.parquet"), compression="gzip", data_page_version="2.0")


def dates(folder, records):
    """The date is one; what kind a record is says only `py_type`. lz4."""
    pairs = [subjects(record) for record in records]
    types = {"like": "feed.like", "repost": "feed.repost", "reply": "feed.post", "post": "feed.post", "follow": "graph.follow"}
    table = pyarrow.table({
        "py_type": ["app.bsky." + types[record["record_type"]] for record in records],
        "subject": [None if pair[0] is None else json.dumps(pair[0]) for pair in pairs],
        "reply": [None if pair[1] is None else json.dumps(pair[1]) for pair in pairs],
        "partition_date": pyarrow.array([datetime.date.fromisoformat(record["stamp"][:10]) for record in records]),
    })
    pyarrow.parquet.write_table(table, os.path.join(folder, "dates.parquet"), compression="lz4")


order = json.load(sys.stdin)
os.makedirs(order["folder"], exist_ok=True)
for write, layout in zip([texts, structs, times, dates], order["layouts"]):
    write(order["folder"], layout)
