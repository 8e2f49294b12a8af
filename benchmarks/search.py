"""How long a search takes: the ten nearest pictures of a query, by the products with all of them.

python benchmarks/search.py --pictures 120000 --dim 768
"""

import argparse
import statistics
import time

import torch

from vgsplus.search.index import nearest


def main() -> None:
    """Print the median and the range over the queries, in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pictures", type=int, default=120_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--queries", type=int, default=100)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(arguments.pictures, arguments.dim, generator=generator)
    queries = torch.randn(arguments.queries, arguments.dim, generator=generator)
    nearest(queries[0], pictures, 10)
    times = []
    for query in queries:
        start = time.perf_counter()
        nearest(query, pictures, 10)
        times.append(1e3 * (time.perf_counter() - start))
    print(
        f"{arguments.pictures} pictures, {arguments.dim} dimensions, {torch.get_num_threads()} threads: "
        f"median {statistics.median(times):.1f} ms, {min(times):.1f} to {max(times):.1f}"
    )


if __name__ == "__main__":
    main()
