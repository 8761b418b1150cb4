"""The Open Inference Protocol over gRPC: the same predictions as over HTTP, in protocol buffers."""

import os

# Said before grpc is imported: else its handlers of fork() run whenever a runner is started, and where calls are under
# way they end some of the new processes before these have become runners.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
