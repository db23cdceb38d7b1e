# %% [markdown]
# The spread of two symbols over time, from a queue of market data: into polars without a copy, and as a plot.
#
#     pip install ./bindings/python polars matplotlib
#     python bindings/python/examples/spread.py spread.svg [QUEUE]
#
# Without a queue, it makes one of a recording: $CHRONFS_DATA/market/binance-usdm-btcusdt-ethusdt-20240808.log.gz if that
# exists, else the synthetic one in testdata/. The cells run in an editor that knows `# %%`, too.

# %%
import gzip
import os
import sys
import tempfile
from pathlib import Path

import matplotlib
import polars as pl

import chronfs

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

root = Path(__file__).parents[3] if "__file__" in globals() else Path.cwd()

# %% [markdown]
# A queue: that of a feed that is running (`scripts/bus.sh` has one), or one with the recording. Its lines are a time in
# nanoseconds and a message in JSON.

# %%
if len(sys.argv) > 2:
    queue = chronfs.Queue(sys.argv[2])
else:
    temporary = tempfile.TemporaryDirectory()
    queue = chronfs.Queue(Path(temporary.name) / "market", create=True)
    recording = Path(os.environ.get("CHRONFS_DATA", "")) / "market/binance-usdm-btcusdt-ethusdt-20240808.log.gz"
    if not recording.exists():
        recording = root / "testdata/market-sample.log.gz"
    with queue.writer() as writer, gzip.open(recording) as lines:
        for line in lines:
            time, message = line.rstrip().split(b" ", 1)
            writer.append(message, type=1, timestamp_ns=int(time))
print(queue, "holds", queue.inspect()["messages"], "messages")

# %% [markdown]
# As a data frame: columns `seq`, `timestamp`, `type`, `payload`. The payloads stay in the queue's mapped files.

# %%
messages = pl.DataFrame(queue.scan(types=1))
print(messages)

# %% [markdown]
# The best bid and ask of each symbol, and the spread between them in basis points: its highest value in each second.

# %%
price = pl.Float64
field = lambda path: pl.col("payload").cast(pl.String).str.json_path_match(path)  # noqa: E731
quotes = (
    messages.lazy()
    .filter(field("$.data.e") == "bookTicker")
    .select("timestamp", symbol=field("$.data.s"), bid=field("$.data.b").cast(price), ask=field("$.data.a").cast(price))
    .with_columns(spread=(pl.col("ask") - pl.col("bid")) / (pl.col("ask") + pl.col("bid")) * 20_000)
    .collect()
)
spreads = (
    quotes.sort("timestamp")
    .group_by_dynamic("timestamp", every="1s", group_by="symbol")
    .agg(pl.col("spread").max(), quotes=pl.len())
)
print(spreads)

# %%
plt.rcParams["svg.hashsalt"] = "chronfs"  # the same file each time
figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
for (symbol,), of_symbol in sorted(spreads.group_by("symbol")):
    axes.step(of_symbol["timestamp"], of_symbol["spread"], where="post", linewidth=1, label=symbol)
axes.set(ylabel="spread, basis points", ylim=(0, None))
axes.xaxis.set_major_formatter(matplotlib.dates.ConciseDateFormatter(axes.xaxis.get_major_locator()))
axes.legend(frameon=False)
axes.grid(alpha=0.3)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "spread.svg", metadata={"Date": None})
