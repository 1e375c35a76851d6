# docker build -t nbtools .                                   for a GPU: docker build --build-arg TORCH_INDEX= -t nbtools .
# docker run --rm nbtools make notebooks                      the whole series; with a GPU: docker run --rm --gpus all ...
# docker run --rm -p 127.0.0.1:8888:8888 nbtools make lab     JupyterLab, at the address with 127.0.0.1 that it prints
FROM python:3.11-slim-bookworm

# PyTorch's builds without CUDA; empty: those of PyPI, with CUDA's libraries, several gigabytes more.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_EXTRA_INDEX_URL=$TORCH_INDEX PIP_NO_CACHE_DIR=1

# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 reader && install -d -o 1000 -g 1000 /nbtools /etc/jupyter \
    && echo '{"ServerApp": {"ip": "0.0.0.0", "open_browser": false}}' > /etc/jupyter/jupyter_server_config.json
USER 1000
WORKDIR /nbtools
COPY --chown=1000:1000 . .
RUN make .venv/.installed
EXPOSE 8888
CMD ["make", "notebooks"]
