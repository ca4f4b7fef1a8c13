"""What test_flower.py runs in a process of its own: Flower's simulation, over Ray."""

import os
import sys

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

from flwr.simulation import run_simulation

import compressrs as cr
from compressrs.distributed.federated import FedDF, client_app, server_app
from tests.distributed.federation import client, server

if __name__ == "__main__":
    strategy = server(FedDF)
    run_simulation(
        server_app(strategy, 2, clients=3),
        client_app(lambda context: client(int(context.node_config["partition-id"]))),
        num_supernodes=3,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    cr.TrainState(server=strategy).save(sys.argv[1])
