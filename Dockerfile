# The same pins as .venv. docker build -t cot . && docker run -p 8888:8888 cot
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends make g++ git && rm -rf /var/lib/apt/lists/*
WORKDIR /repository
COPY . .
# The CPU build of torch: the other is several gigabytes.
RUN PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup
EXPOSE 8888
CMD [".venv/bin/python", "-m", "jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "--allow-root", \
     "--ServerApp.root_dir=.", "--LabApp.default_url=/lab/tree/notebooks/index.ipynb"]
