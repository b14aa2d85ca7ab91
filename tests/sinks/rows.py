"""Rows of Parquet files as DuckDB reads them, each as the record that it was made from.

On standard input: a JSON list of [path, type, day or null]. On standard output, for each row: path, tab, record.
"""

import datetime
import json
import sys

import duckdb

files = json.load(sys.stdin)
days = {path: day for path, _, day in files}
for label in sorted({label for _, label, _ in files}):
    paths = [path for path, of, _ in files if of == label]
    # The folders are columns, too, and agree with what is in the files.
    table = duckdb.read_parquet(paths, hive_partitioning=True, filename=True)
    names = table.columns
    for value in table.fetchall():
        row = dict(zip(names, value))
        path, kind, partition = row.pop("filename"), row.pop("type"), row.pop("day")
        day = days[path]
        assert kind == label, (path, kind)
        assert (None if partition is None else str(partition)) == day, (path, partition)
        synced, other = row.pop("synced_at"), row.pop("other")
        assert other is None, other
        stamp = row.get("synctimestamp")
        if stamp is not None:
            wanted = datetime.datetime.strptime(stamp, "%Y-%m-%d-%H:%M:%S")
            assert synced == wanted and stamp[:10] == day, (stamp, synced)
            assert label == row["record_type"]
        else:
            assert synced is None and day is None
        # Only this field is a value in the queue's record, not a text.
        if row.get("record") is not None:
            row["record"] = json.loads(row["record"])
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
        print(path, text, sep="\t")
