# make book | test | lab | class | colab | clean.  Needs Python 3.11 to 3.13, make and git.
PYTHON ?= python3
SCALE  ?= $(or $(SURVEYLIB_SCALE),toy)
JOBS   ?= $(or $(SURVEYLIB_JOBS),2)
PIP_FLAGS ?=
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export SURVEYLIB_SCALE := $(SCALE)
export SURVEYLIB_JOBS := $(JOBS)

.PHONY: book test lab class colab readme clean distclean help

help:
	@echo "make book   execute every chapter, render to _build/html"
	@echo "make test   unit tests, truth tests, every chapter as a notebook"
	@echo "make lab    JupyterLab; chapters open as notebooks"
	@echo "make class  notebooks and sources without the solutions, in out/class"
	@echo "make colab  notebooks that Colab can open, in out/colab"
	@echo "make readme write the survey's map into README.md"
	@echo "make clean  remove what was built (make distclean: the environment too)"
	@echo "JOBS=2 is how many chapters (make book) or tests (make test) run at a time."
	@echo "SCALE=toy|rehearsal|single|full chooses the size; toy is the default."

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "needs Python 3.11 to 3.13: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[book,test]"
	@touch $(STAMP)

# A failed build forgets the pages it read, so that the next one cannot pass by skipping them; executed cells stay cached.
book: $(STAMP)
	$(BIN)/python book/vendor.py
	OMP_NUM_THREADS=1 PYTHONPATH=book $(BIN)/python -m live.build
	SURVEYLIB_STILL=1 $(BIN)/jupyter-book build . -W --keep-going --config _config.yml --toc book/_toc.yml \
	  || { rm -rf _build/.doctrees _build/html/.buildinfo; exit 1; }
	@$(BIN)/python -c 'import pathlib; print("Open", pathlib.Path("_build/html/index.html").resolve().as_uri())'

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations=15 --junitxml=out/junit.xml

lab: $(STAMP)
	$(BIN)/jupytext-config --settings-file $(VENV)/etc/jupyter/labconfig/default_setting_overrides.json \
	  set-default-viewer markdown python
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/chapters

class: $(STAMP)
	$(BIN)/python book/edition.py out/class

colab: $(STAMP)
	$(BIN)/python book/colab.py out/colab

readme: $(STAMP)
	$(BIN)/python book/readme.py

clean:
	rm -rf _build out book/_static/vendor book/_static/live book/live/runtime .pytest_cache .ruff_cache

distclean: clean
	rm -rf $(VENV) *.egg-info
