# Two images from one file: `--target operator` and `--target router` (which also runs the simulated engines).
#
#   docker build --target router -t llmrouter-router .
#
# BASE needs python3 (3.11 to 3.13) and CA certificates; BUILDER_BASE in addition a C compiler, the same Python's headers,
# and uv, or pip to fetch it with.
# CUDA=0 leaves out the GPU libraries of onnxruntime, a quarter of a gigabyte that a machine without a GPU never loads.
# To build on a dependency stage made before, name its image: `--build-context router-runtime=container-image://IMAGE`.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
ARG BUILDER_BASE=docker.io/library/python:3.11-bookworm

FROM ${BUILDER_BASE} AS builder
ARG UV_VERSION=0.13.8
RUN command -v uv >/dev/null || python3 -m pip install --no-cache-dir "uv==${UV_VERSION}"
# uv asks this file whom to trust: a build behind an inspecting proxy mounts its own over it.
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    UV_CACHE_DIR=/var/cache/uv \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_PROGRESS=1 \
    UV_PROJECT_ENVIRONMENT=/opt/llmrouter \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /build
COPY pyproject.toml uv.lock ./

FROM builder AS operator-dependencies
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --frozen --no-default-groups --no-install-project --extra operator

FROM builder AS router-dependencies
ARG CUDA=1
RUN --mount=type=cache,target=/var/cache/uv \
    uv sync --frozen --no-default-groups --no-install-project --extra router --extra testbed \
 && if [ "${CUDA}" = 0 ]; then \
      rm -f /opt/llmrouter/lib/python3.*/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so \
            /opt/llmrouter/lib/python3.*/site-packages/onnxruntime/capi/libonnxruntime_providers_tensorrt.so; \
    fi

FROM builder AS native
RUN --mount=type=cache,target=/var/cache/uv \
    UV_PROJECT_ENVIRONMENT=/opt/native uv sync --frozen --only-group native --no-install-project

FROM native AS code
COPY . /code
RUN /opt/native/bin/python /code/tools/build_native.py /code \
 && rm -r /code/tools \
 && mkdir /code/bin \
 && printf '#!/bin/sh\nexec python -m llmrouter.cli "$@"\n' > /code/bin/llmrouter \
 && chmod 0755 /code/bin/llmrouter \
 && python3 -m compileall -q --invalidation-mode unchecked-hash -s /code -p /app /code

FROM ${BASE} AS runtime
ENV PATH=/app/bin:/opt/llmrouter/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/app:/app/operator \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
WORKDIR /app
USER 65532:65532

FROM runtime AS operator-runtime
ENTRYPOINT ["python", "-m", "llmrouter_operator"]
COPY --from=operator-dependencies /opt/llmrouter /opt/llmrouter

FROM runtime AS router-runtime
ENTRYPOINT ["python", "-m", "router_grpc"]
COPY --from=router-dependencies /opt/llmrouter /opt/llmrouter

# The code comes last in both images: a changed source is one new small layer.
FROM operator-runtime AS operator
COPY --from=code /code /app

FROM router-runtime AS router
COPY --from=code /code /app
