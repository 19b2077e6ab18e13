#!/usr/bin/env bash
# One model over two hosts, and a request to it. Both hosts are this machine here, at 127.0.0.1; between real ones
# run the first command on host 0, the second on host 1, with host 0's address in a private network in both.
#
#     examples/two_hosts.sh [MODEL]      a model whose heads divide by 2; default: a small one of random weights
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT

model=${1:-$folder/random}
load=()
if [[ $# == 0 ]]; then
  load=(--load-format dummy)
  mkdir "$model"
  python - "$model" <<'PYTHON'
import json, sys, tokenizers
folder = sys.argv[1]
words = {letter: number for number, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
backend = tokenizers.Tokenizer(tokenizers.models.BPE(words, []))
backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
backend.decoder = tokenizers.decoders.ByteLevel()
backend.save(f"{folder}/tokenizer.json")
shape = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": len(words), "max_position_embeddings": 1024, "rms_norm_eps": 1e-5}
with open(f"{folder}/config.json", "w") as file:
    json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", **shape}, file)
PYTHON
fi

# Three free ports in a row for the hosts, and one for clients.
read -r meet port < <(python - <<'PYTHON'
import contextlib, socket
while True:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(4)]
        try:
            sockets[0].bind(("127.0.0.1", 0))
            first = sockets[0].getsockname()[1]
            for number, one in enumerate(sockets[1:], 1):
                one.bind(("127.0.0.1", first + number))
        except (OSError, OverflowError):
            continue
        print(first, first + 3)
        break
PYTHON
)
MINISGL_DIST_SECRET=$(python -c 'import secrets; print(secrets.token_hex(16))')
export MINISGL_DIST_SECRET
both=("$model" "${load[@]}" --tp 2 --nnodes 2 --dist-init-addr "127.0.0.1:$meet")

minisgl-serve "${both[@]}" --port "$port" 2> >(sed 's/^/host 0: /' >&2) &
server=$!
minisgl-serve "${both[@]}" --node-rank 1 2> >(sed 's/^/host 1: /' >&2) &

until curl -sf "http://127.0.0.1:$port/ready" >/dev/null; do
  kill -0 "$server" || exit 1 # it has said why
  sleep 0.2
done
curl -sS --fail-with-body "http://127.0.0.1:$port/v1/completions" -H 'Content-Type: application/json' \
  -d '{"prompt": "Hello", "max_tokens": 8, "temperature": 0}'
echo
