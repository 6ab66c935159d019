# docker build -t tae .
# docker run --rm tae                                              the demo
# docker run --rm --gpus all --shm-size=8g -v DATA:/app/datasets tae \
#     .venv/bin/python train.py experiment=ucf101 trainer.devices=8
# (batches go through shared memory, of which Docker gives 64 MB where --shm-size does not say otherwise)
FROM python:3.11.14-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home tae && mkdir /app && chown tae /app
USER tae
WORKDIR /app

# Dependencies before code: they change rarely, and take minutes and gigabytes.
COPY --chown=tae pyproject.toml requirements.lock Makefile README.md LICENSE ./
COPY --chown=tae tae/__init__.py tae/__init__.py
COPY --chown=tae data/__init__.py data/__init__.py
RUN make install

COPY --chown=tae . .
CMD ["make", "demo"]
