"""Reads an export as its own tools do: `export.py speedscope SCHEMA FILE`, `export.py parquet FOLDER`.

A warning is an error. `parquet` prints what both readers found, as JSON.
"""

import json
import sys
import warnings
from pathlib import Path

warnings.simplefilter("error")


def speedscope(schema, file):
    import jsonschema

    schema = json.loads(Path(schema).read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(json.loads(Path(file).read_text()))


def parquet(folder):
    import duckdb
    import pyarrow.compute
    import pyarrow.parquet

    found = {}
    files = sorted(Path(folder).iterdir())
    for file in files:
        table = pyarrow.parquet.read_table(file)
        table.validate(full=True)
        metadata = pyarrow.parquet.read_metadata(file)
        counted = duckdb.sql(f"select count(*) from '{file}'").fetchall()[0][0]
        assert counted == table.num_rows, f"{file}: {counted} and {table.num_rows} rows"
        report = json.loads(metadata.metadata[b"leaktrace.report"])
        found[file.stem] = {
            "rows": counted,
            "row_groups": metadata.num_row_groups,
            "pid": report["target"]["pid"],
        }

    sums = ["live_bytes", "live_objects", "alloc_bytes", "growth_bytes", "proven_bytes"]
    sites = Path(folder, "sites.parquet")
    columns = pyarrow.parquet.read_table(sites)
    for column in sums:
        by_arrow = pyarrow.compute.sum(columns[column]).as_py()
        by_duckdb = duckdb.sql(f"select sum({column}) from '{sites}'").fetchall()[0][0]
        assert by_arrow == by_duckdb, f"{column}: {by_arrow} and {by_duckdb}"
        found[column] = int(by_duckdb or 0)

    # The tables go together: by the line that holds most, and by the end of its series.
    found["largest"] = duckdb.sql(
        f"""
        select function, sum(live_bytes)::bigint as bytes
        from '{sites}' join '{folder}/frames.parquet' using (site)
        where depth = 0 and kind = 'go_heap' group by function order by bytes desc limit 1
        """
    ).fetchall()[0]
    found["at_the_end"] = int(
        duckdb.sql(
            f"""
            select sum(live_bytes) from '{folder}/series.parquet'
            where t_s = (select max(t_s) from '{folder}/series.parquet')
            """
        ).fetchall()[0][0]
    )
    print(json.dumps(found))


if __name__ == "__main__":
    {"speedscope": speedscope, "parquet": parquet}[sys.argv[1]](*sys.argv[2:])
