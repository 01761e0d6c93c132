"""Put known slips into the code, one by one, and show that the tests notice each.

    python tools/mutants.py [--only NAME ...] [--jobs 2]

The slips are those that `docs/concepts.md` and the reference's users know: what other implementations of this method
got wrong. Each is one replacement in a copy of the sources; the tests named beside it run against the copy and must
fail. Prints a table with the first test that failed and exits with 1 if a slip went unnoticed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[1]
PACKAGE = "diffusers_ucgm"


@dataclass(frozen=True)
class Mutant:
    """One slip: `before` stands exactly once in `file` and becomes `after`; `tests` are what must notice."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


SCHEDULER_TESTS = ("tests/test_scheduler.py", "tests/test_scheduler_contract.py")
MULTISTEP_TESTS = ("tests/sampling/test_solver.py",)
CONVENTION_TESTS = (
    "tests/sampling/test_conventions.py",
    "tests/sampling/test_beta_schedules.py",
    "tests/sampling/test_timesteps.py",
    "tests/sampling/test_runs.py",
    "tests/sampling/test_stock_configs.py",
)
FITTED_TESTS = ("tests/sampling/test_fitted.py",)
FIT_TESTS = ("tests/solver_study/test_least_squares.py",)
LOADING_TESTS = ("tests/test_load_in_new_process.py",)
SWAP_TESTS = ("tests/sampling/test_swap.py",)
LOSS_TESTS = ("tests/test_loss.py", "tests/test_targets.py", "tests/test_loss_inputs.py")
METRIC_TESTS = ("tests/image_metrics/test_statistics.py",)
HELP_TESTS = ("tests/test_help.py",)
CONVERSION_TESTS = ("tests/conversion",)
TRAINER_TESTS = ("tests/training",)
AUTOENCODER_TESTS = ("tests/test_autoencoders.py",)
LABEL_TESTS = ("tests/test_labels.py",)
BAD_VALUE_TESTS = ("tests/image_metrics/test_bad_values.py",)
AGREEMENT_TESTS = ("tests/training/test_agreement.py",)
EARLY_TESTS = ("tests/test_early_checks.py",)
PIPELINE_TESTS = ("tests/test_pipeline.py", "tests/test_pipeline_loading.py")
CACHE_TESTS = ("tests/test_network_caches.py",)
EXPERT_TESTS = ("tests/training/test_experts.py",)
LORA_TESTS = ("tests/test_loading.py",)
SETTING_TESTS = ("tests/sampling/test_settings.py", "tests/sampling/test_step_arguments.py")
PRECISION_TESTS = ("tests/sampling/test_precision.py",)
NOISE_TESTS = ("tests/sampling/test_run_noise.py",)
NOISING_TESTS = ("tests/sampling/test_noising.py",)

MUTANTS = [
    # Settings, dtypes, noise of a run and times of the scheduler
    Mutant(
        "numbers may be bools",
        "constraints.py",
        "if isinstance(value, bool | np.bool_) or not isinstance",
        "if not isinstance",
        SETTING_TESTS,
    ),
    Mutant(
        "numbers may be of any magnitude",
        "constraints.py",
        "lambda value: isinstance(value, str) or low <= value <= high",
        "lambda value: True",
        SETTING_TESTS,
    ),
    Mutant(
        "settings are not checked against each other",
        "sampling/settings.py",
        "    _check_relations(config)\n\n",
        "",
        SETTING_TESTS,
    ),
    Mutant(
        "an index of enumerate is taken for a time",
        "sampling/timesteps.py",
        "int(timestep) not in whole",
        "False",
        SETTING_TESTS,
    ),
    Mutant(
        "a chain may lose the data before its end",
        "sampling/beta_schedules.py",
        "if not bool((abar.diff() < 0).all()):",
        "if not bool((abar.diff() <= 0).all()):",
        SETTING_TESTS,
    ),
    Mutant(
        "results always have the sample's dtype",
        "sampling/precision.py",
        '"model_output": lambda sample, model_output: model_output,',
        '"model_output": lambda sample, model_output: sample,',
        PRECISION_TESTS,
    ),
    Mutant(
        "UniPC's results are promoted",
        "sampling/precision.py",
        '    "UniPCMultistepScheduler": "sample",\n',
        "",
        PRECISION_TESTS,
    ),
    Mutant(
        "a copy in mid run goes on from the rounded sample",
        "sampling/precision.py",
        "return looks_alike and torch.equal(self.rounded, sample)",
        "return False",
        PRECISION_TESTS,
    ),
    Mutant(
        "a copy takes any sample for its own",
        "sampling/precision.py",
        "return looks_alike and torch.equal(self.rounded, sample)",
        "return looks_alike",
        PRECISION_TESTS,
    ),
    Mutant(
        "a copy shares the history that a step writes to",
        "sampling/runs.py",
        '"_history": [each.clone() for each in self._history]',
        "",
        PRECISION_TESTS,
    ),
    Mutant(
        "noise of a run comes from the global generator",
        "scheduler.py",
        "if generator is None and run_noise is not None:",
        "if False:",
        NOISE_TESTS,
    ),
    Mutant(
        "every step of a run has the same noise",
        "sampling/run_noise.py",
        "numbered_seed(seed, index)",
        "numbered_seed(seed, 0)",
        NOISE_TESTS,
    ),
    Mutant(
        "a batch has one seed",
        "sampling/run_noise.py",
        'self.seeds = [int.from_bytes(digest, "little") for digest in digests]',
        'self.seeds = [int.from_bytes(digests[0], "little") for digest in digests]',
        NOISE_TESTS,
    ),
    Mutant(
        "the noise of the run before stays",
        "scheduler.py",
        "        self._run_noise: RunNoise | None = None\n",
        '        self._run_noise = getattr(self, "_run_noise", None)\n',
        NOISE_TESTS,
    ),
    Mutant(
        "times beyond the path are clamped without a word",
        "sampling/noising.py",
        "if not bool(((wide >= low - slack) & (wide <= high + slack)).all()):",
        "if not bool(wide.isfinite().all()):",
        NOISING_TESTS,
    ),
    Mutant(
        "one latent does not serve for several times",
        "sampling/noising.py",
        "if any(count not in (1, most)",
        "if any(count != most",
        NOISING_TESTS,
    ),
    # LoRAs, drawing and two networks
    Mutant(
        "a LoRA's scale is not part of a model's identity",
        "lora.py",
        "(name, adapter, float(module.scaling[adapter]))",
        "(name, adapter, 1.0)",
        LORA_TESTS,
    ),
    Mutant(
        "a LoRA with more modules than the network is taken",
        "lora.py",
        "if found < expected:",
        "if not found:",
        LORA_TESTS,
    ),
    Mutant(
        "a few-step LoRA leaves the multi-step sampler",
        "loading.py",
        'if sampler := notes.get("sampler"):',
        'if sampler := notes.get("scheduler"):',
        LORA_TESTS,
    ),
    Mutant(
        "a negative prompt that the pipeline ignores is taken",
        "generation/conditions.py",
        "value <= 1.0:",
        "value <= 0.0:",
        ("tests/generation/test_conditions.py",),
    ),
    Mutant(
        "the steps of stock pipelines take noise from torch's global state",
        "generation/sampling_scheduler.py",
        "settings = noise | settings",
        "settings = dict(settings)",
        ("tests/generation/test_generate.py", "tests/generation/test_sampling_scheduler.py"),
    ),
    Mutant(
        "the modules stay in evaluation mode",
        "generation/generate.py",
        "module.training = mode",
        "module.training = False",
        ("tests/generation/test_generate.py",),
    ),
    Mutant(
        "a cache keeps its state from run to run",
        "network_caches.py",
        "HookRegistry.check_if_exists_or_initialize(self.network).reset_stateful_hooks()",
        "HookRegistry.check_if_exists_or_initialize(self.network)",
        CACHE_TESTS,
    ),
    Mutant(
        "the cache's batch is conditions before null conditions",
        "network_calls.py",
        "both.chunk(2)[:: -1 if null_first else 1]",
        "both.chunk(2)",
        CACHE_TESTS,
    ),
    Mutant(
        "TaylorSeer matches no module and nobody says so",
        "network_caches.py",
        "return replace(config, cache_identifiers=names) if names else config",
        "return config",
        CACHE_TESTS,
    ),
    Mutant(
        "one of two networks is trained on all times",
        "training/trainer.py",
        "(0.0, 1.0) if self.expert is None else self.expert.time_range,",
        "(0.0, 1.0),",
        EXPERT_TESTS,
    ),
    Mutant(
        "the second network's LoRA is loaded into the first",
        "lora.py",
        '{"load_into_transformer_2": True} if component',
        "{} if component",
        EXPERT_TESTS,
    ),
    Mutant(
        "wrappers of single blocks stay in the names",
        "conversion/names.py",
        'for part in key.split(".") if part not in INNER_WRAPPERS',
        'for part in key.split(".") if part != "_orig_mod"',
        CONVERSION_TESTS,
    ),
    Mutant(
        "of two tensors with one name the last is taken",
        "conversion/names.py",
        "if name in found:",
        "if False:",
        CONVERSION_TESTS,
    ),
    # Transports and grids
    Mutant(
        "data estimate with the wrong sign",
        "transports.py",
        "(alpha * output - alpha_hat * x_t) / det",
        "(alpha * output + alpha_hat * x_t) / det",
        ("tests/test_transports.py",),
    ),
    Mutant(
        "sign of TrigFlow's gamma_hat",
        "transports.py",
        'Transport(*PATHS["trigflow"], _cosine, lambda t: -_sine(t))',
        'Transport(*PATHS["trigflow"], _cosine, _sine)',
        ("tests/test_transports.py",),
    ),
    Mutant(
        "EDM's 0.5 written 0.25",
        "transports.py",
        "lambda t: -0.5 * _edm_scale(t)",
        "lambda t: -0.25 * _edm_scale(t)",
        ("tests/test_transports.py",),
    ),
    Mutant(
        "reversed transport keeps its time",
        "transports.py",
        "return t if self.noise_time == 1.0 else 1.0 - t",
        "return t",
        ("tests/test_transports.py", *SCHEDULER_TESTS),
    ),
    Mutant(
        "warp exponents a and b swapped",
        "sampling/grids.py",
        "(1.0 - (1.0 - u**a) ** b) ** c",
        "(1.0 - (1.0 - u**b) ** a) ** c",
        ("tests/sampling/test_grids.py", *SCHEDULER_TESTS),
    ),
    Mutant(
        "a last gap of 0 evaluates the network at data",
        "sampling/grids.py",
        "drop = int(stop == 0)",
        "drop = 0",
        ("tests/sampling/test_grids.py", *SCHEDULER_TESTS),
    ),
    Mutant(
        "gaps swapped",
        "sampling/grids.py",
        "start, stop = time_gaps",
        "stop, start = time_gaps",
        ("tests/sampling/test_grids.py", *SCHEDULER_TESTS),
    ),
    # Loss and teacher
    Mutant(
        "labels dropped in the last round(0.1 B) rows, all of them for B < 5",
        "loss.py",
        "dropped = torch.rand(len(x), generator=generator, device=source) < self.label_dropout",
        "dropped = torch.zeros(len(x), dtype=torch.bool)\n"
        "            dropped[-round(self.label_dropout * len(x)) :] = True",
        LOSS_TESTS,
    ),
    Mutant(
        "batch changed in place",
        "loss.py",
        "clean = x.to(torch.promote_types(x.dtype, torch.float32))",
        "clean = x.to(torch.promote_types(x.dtype, torch.float32)).mul_(1.0 + 1e-3)",
        LOSS_TESTS,
    ),
    Mutant(
        "network asked outside [0, 1]",
        "student_path.py",
        "inside = ends[0].clamp(min=0.0), ends[1].clamp(max=1.0)",
        "inside = ends",
        LOSS_TESTS,
    ),
    Mutant(
        "times in the dtype of the latents",
        "student_path.py",
        "self.transport.model_time(t).float()",
        "self.transport.model_time(t).to(self.network_dtype)",
        LOSS_TESTS,
    ),
    Mutant(
        "NaN at t = 0 from 4 / sin(0)",
        "targets.py",
        "MIN_TIME = 1e-4",
        "MIN_TIME = 0.0",
        LOSS_TESTS,
    ),
    Mutant(
        "consistency loss of a reversed transport in the network's own time",
        "student_path.py",
        "self.transport.model_time(t).float()",
        "t.float()",
        LOSS_TESTS,
    ),
    Mutant(
        "enhancement ratio of 1 and more not mapped",
        "loss.py",
        "return (ratio - 1.0) / ratio if self.consistency_ratio == 0.0 and ratio >= 1.0 else ratio",
        "return ratio",
        LOSS_TESTS,
    ),
    Mutant(
        "derivative not clamped",
        "loss.py",
        "student, batch.t).clamp(-1.0, 1.0)",
        "student, batch.t)",
        LOSS_TESTS,
    ),
    Mutant(
        "network calls of one step under different dropout",
        "student_path.py",
        "        torch.manual_seed(seed)\n",
        "",
        LOSS_TESTS,
    ),
    Mutant(
        "teacher ignored by the enhanced target",
        "loss.py",
        "guide = student if teacher is None else predict(teacher, x_t, t, batch.condition)",
        "guide = student",
        LOSS_TESTS,
    ),
    Mutant(
        "dropped samples enhanced like the others",
        "targets.py",
        "return torch.where(column(dropped, value), 0.5 * (value + reference), moved)",
        "return moved",
        LOSS_TESTS,
    ),
    Mutant(
        "teacher's warm-up missing",
        "teacher.py",
        "self.decay += (1.0 - self.decay) * (self.teacher_decay - self.decay) / 2.0",
        "self.decay = self.teacher_decay",
        ("tests/test_teacher.py",),
    ),
    Mutant(
        "teacher forgets buffers",
        "teacher.py",
        "            mine.copy_(theirs)\n",
        "            pass\n",
        ("tests/test_teacher.py",),
    ),
    # Trainer
    Mutant(
        "resume forgets the teacher",
        "training/trainer.py",
        "lambda tensors, value: self.teacher.load_state_dict(dict(tensors), value)",
        "lambda tensors, value: None",
        TRAINER_TESTS,
    ),
    Mutant(
        "resume forgets the averages",
        "training/run_state.py",
        "        checkpoints.copy_tensors(shadow(), tensors)\n",
        "",
        TRAINER_TESTS,
    ),
    Mutant(
        "resume forgets the loss's statistics",
        "training/log.py",
        "self.statistics.load(sums if self.accelerator.is_main_process else torch.zeros_like(sums))",
        "pass",
        TRAINER_TESTS,
    ),
    Mutant(
        "last weights saved in place of the averages",
        "training/averages.py",
        "    ema.copy_to(parameters)  # pyright: ignore[reportArgumentType]\n",
        "",
        TRAINER_TESTS,
    ),
    Mutant(
        "a skipped step still moves the weights",
        "training/trainer.py",
        "                self.optimizer.zero_grad()\n        self.optimizer.step()\n",
        "                pass\n        self.optimizer.step()\n",
        TRAINER_TESTS,
    ),
    Mutant(
        "data order starts anew on resume",
        "training/batches.py",
        "sample_order(self.num_samples, self.steps.start * per_step, self.seed)",
        "sample_order(self.num_samples, 0, self.seed)",
        TRAINER_TESTS,
    ),
    Mutant(
        "noise depends on how a step is split",
        "training/batches.py",
        "places = [(next(order), step, position) for position in range(per_step)]",
        "places = [(next(order), step, position % self.batch_size) for position in range(per_step)]",
        TRAINER_TESTS,
    ),
    Mutant(
        "processes take the same samples",
        "training/batches.py",
        "start = call * per_call + self.process_index * self.batch_size",
        "start = call * per_call",
        ("tests/training/test_distributed.py",),
    ),
    Mutant(
        "consistency ratio stays at its first value",
        "training/config.py",
        'settings["consistency_ratio"] = self.ratio_at(step)',
        'settings["consistency_ratio"] = self.ratio_at(0)',
        TRAINER_TESTS,
    ),
    Mutant(
        "LoRA's teacher keeps the adapter on",
        "lora.py",
        "        layer._disable_adapters = True\n",
        "        pass\n",
        ("tests/test_lora.py",),
    ),
    Mutant(
        "LoRA's adapter in the base's half precision",
        "lora.py",
        "            parameter.data = parameter.data.float()\n",
        "            pass\n",
        ("tests/test_lora.py",),
    ),
    Mutant(
        "a torn checkpoint counts",
        "training/checkpoints.py",
        " and _damage(folder) is None:\n            return folder",
        ":\n            return folder",
        (
            "tests/training/test_checkpoints.py",
            "tests/training/test_interruptions.py",
            "tests/training/test_collapse.py",
        ),
    ),
    Mutant(
        "DiT's own label dropout stays on",
        "training/image_adapters.py",
        "                module.dropout_prob = 0.0\n",
        "                pass\n",
        ("tests/training/test_image_adapters.py",),
    ),
    Mutant(
        "Z-Image's velocity with the flow's sign",
        "training/image_adapters.py",
        "return -torch.stack(output).squeeze(2)",
        "return torch.stack(output).squeeze(2)",
        ("tests/training/test_adapters.py",),
    ),
    Mutant(
        "Flux's patches with their channels last",
        "training/image_adapters.py",
        "patches.permute(0, 2, 4, 1, 3, 5).flatten(3)",
        "patches.permute(0, 2, 4, 3, 5, 1).flatten(3)",
        ("tests/training/test_image_adapters.py",),
    ),
    Mutant(
        "time in the weights' precision",
        "training/network_adapter.py",
        "self.time_argument: self.network_time(self.timestep(t))}",
        "self.time_argument: self.network_time(self.timestep(t.to(dtype)))}",
        ("tests/training/test_network_adapter.py",),
    ),
    Mutant(
        "doubled calls in the wrong order",
        "student_path.py",
        "self.predict(self.denoiser, torch.cat(points), torch.cat(times), condition).chunk(number)",
        "self.predict(self.denoiser, torch.cat(points), torch.cat(times), condition).chunk(number)[::-1]",
        ("tests/test_loss_speed.py", "tests/test_student_path.py"),
    ),
    Mutant(
        "the guard speaks at one outlier",
        "training/stability.py",
        "PATIENCE = 2",
        "PATIENCE = 1",
        ("tests/training/test_stability.py", "tests/training/test_ratios.py"),
    ),
    Mutant(
        "the guard forgets its first alarm when the ratio rises",
        "training/stability.py",
        "        is_known = len(losses) >= SETTLED\n",
        "        is_known = len(losses) >= SETTLED\n        self.high = self.high if is_known else 0\n",
        ("tests/training/test_stability.py", "tests/training/test_ratios.py"),
    ),
    Mutant(
        "a roll-back leaves the collapsed checkpoints",
        "training/collapse.py",
        "checkpoints.drop_checkpoints(run.config.output_dir, run.step, run.runs)",
        "pass",
        ("tests/training/test_interruptions.py", "tests/training/test_collapse.py"),
    ),
    Mutant(
        "only the main process hears of a full disk",
        "training/trainer.py",
        "if is_true_of_any(self.accelerator, failure is not None):\n            raise failure or OSError",
        "if failure is not None or self.accelerator.wait_for_everyone():\n            raise failure or OSError",
        ("tests/training/test_distributed.py",),
    ),
    Mutant(
        "every process goes on from the sums of all",
        "training/log.py",
        "sums if self.accelerator.is_main_process else torch.zeros_like(sums)",
        "sums",
        ("tests/training/test_distributed.py",),
    ),
    Mutant(
        "half a line stays in the log",
        "files.py",
        "                os.truncate(path, size)\n",
        "                pass\n",
        ("tests/training/test_trainer.py", "tests/training/test_batches.py"),
    ),
    # Files and the folders of runs
    Mutant(
        "a half file stays after an error",
        "files.py",
        "                temporary.unlink(missing_ok=True)\n",
        "                pass\n",
        ("tests/test_files.py",),
    ),
    Mutant(
        "safetensors' error is not one of the disk",
        "files.py",
        "    except SafetensorError as error:\n        raise OSError(",
        "    except SafetensorError as error:\n        raise RuntimeError(",
        ("tests/test_files.py",),
    ),
    Mutant(
        "left-overs of living processes are removed",
        "files.py",
        "pid != os.getpid() and is_alive(pid)",
        "False",
        ("tests/test_files.py",),
    ),
    Mutant(
        "overwriting removes checkpoints of others",
        "run_folder.py",
        'if path.name.startswith("checkpoint-") and run_of(path) not in ids:',
        "if not path.name:",
        ("tests/test_run_folder.py", "tests/test_locks.py"),
    ),
    Mutant(
        "overwriting removes what the run is made from",
        "run_folder.py",
        "if is_read or any(part == path or part in path.parents for part in removed):",
        "if False:",
        ("tests/test_run_folder.py",),
    ),
    Mutant(
        "an older run is removed for a checkpoint that does not fit",
        "training/trainer.py",
        "elsewhere = None if resumes_in(self.config, folder.folder) else source",
        "elsewhere = None",
        ("tests/training/test_runs.py",),
    ),
    Mutant(
        "checkpoints of the folder have no names",
        "training/runs.py",
        'return named if (named / "state.json").is_file() else source',
        "return source",
        ("tests/training/test_runs.py",),
    ),
    Mutant(
        "the working folder is no place for a run",
        "files.py",
        'path.name if path.name and place == path.parent else "probe"',
        'path.name if place == path.parent else "probe"',
        ("tests/test_files.py",),
    ),
    Mutant(
        "a folder without a name is the working folder",
        "files.py",
        "if not str(path).strip():",
        "if False:",
        ("tests/test_files.py",),
    ),
    Mutant(
        "a cache is unlocked before its last file",
        "training/commands.py",
        "        run,\n        encode_captions=",
        "        args.output,\n        encode_captions=",
        ("tests/training/test_commands.py",),
    ),
    Mutant(
        "another run goes on in the folder",
        "run_folder.py",
        'if changed := differences(found["identity"], identity):',
        "if changed := differences({}, {}):",
        ("tests/test_run_folder.py", "tests/test_locks.py"),
    ),
    Mutant(
        "a second process is let in",
        "locks.py",
        "        except BlockingIOError:\n            raise self._refusal(self._owner(descriptor)) from None\n",
        "        except BlockingIOError:\n            pass\n",
        ("tests/test_run_folder.py", "tests/test_locks.py"),
    ),
    Mutant(
        "children inherit the lock",
        "locks.py",
        "fcntl.lockf(descriptor",
        "fcntl.flock(descriptor",
        ("tests/test_run_folder.py", "tests/test_locks.py"),
    ),
    Mutant(
        "a used folder is taken without a word",
        "training/runs.py",
        "    if results and not is_resumed:\n",
        "    if False:\n",
        ("tests/training/test_runs.py",),
    ),
    Mutant(
        "a run goes on with other data",
        "training/runs.py",
        'if changed := differences(found["identity"], identity):',
        "if changed := differences({}, {}):",
        ("tests/training/test_runs.py",),
    ),
    Mutant(
        "a stopped run's first lines stay in the log",
        "training/runs.py",
        "        (run.folder / LOG_NAME).unlink(missing_ok=True)\n",
        "",
        ("tests/training/test_runs.py",),
    ),
    Mutant(
        "latest is the checkpoint of another run",
        "training/trainer.py",
        "checkpoints.latest_checkpoint(self.config.output_dir, runs=self.runs)",
        "checkpoints.latest_checkpoint(self.config.output_dir)",
        ("tests/training/test_runs.py",),
    ),
    Mutant(
        "a stopped command starts again by removing its work",
        "interruptions.py",
        '        if not is_dropped and (word.startswith("--") or not is_value):\n',
        '        if word.startswith("--") or not is_value:\n',
        ("tests/test_interruptions.py",),
    ),
    Mutant(
        "words of settings are read as YAML 1.1 has them",
        "files.py",
        "yaml.BaseLoader if as_words else yaml.SafeLoader",
        "yaml.SafeLoader",
        ("tests/training/test_settings.py",),
    ),
    Mutant(
        "a stopped cache starts anew",
        "data/latent_cache.py",
        "number % num_processes == process_index and not _is_whole(_shard(folder, number))",
        "number % num_processes == process_index",
        ("tests/data/test_latent_cache.py",),
    ),
    # Sampler
    Mutant(
        "result of the last step is extrapolated",
        "sampling/solver.py",
        "    return Call(t.x_hat, t.x_hat, is_last=True)",
        "    return Call(t.x_hat, (1.0 + settings.extrapolation_ratio) * t.x_hat)",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "extrapolation starts one step early",
        "sampling/solver.py",
        "isinstance(ratio, str) or steps_made < 2 else ratio",
        "isinstance(ratio, str) or steps_made < 1 else ratio",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "long steps extrapolated in full",
        "sampling/solver.py",
        "share = FULL_STEP / span if span > FULL_STEP else 1.0",
        "share = 1.0",
        MULTISTEP_TESTS,
    ),
    Mutant(
        "end of an adaptive run not continued",
        "sampling/solver.py",
        "weight = min(1.0 / math.expm1(2.0 * distance), 1.0)",
        "weight = 0.0",
        MULTISTEP_TESTS,
    ),
    Mutant(
        "parabola of the corrector without the estimate before",
        "sampling/runs.py",
        "base.add_(earlier, alpha=weight)",
        "pass",
        MULTISTEP_TESTS,
    ),
    Mutant(
        "grid from pure noise without a shift",
        "sampling/log_snr_grid.py",
        "-math.log(FIRST_LEVEL * num_points * shift)",
        "-math.log(FIRST_LEVEL * num_points)",
        ("tests/sampling/test_log_snr_grid.py",),
    ),
    Mutant(
        "steps of any length between few calls",
        "sampling/log_snr_grid.py",
        "min(last, first + LONGEST_STEP * (number - 1))",
        "last",
        ("tests/sampling/test_log_snr_grid.py",),
    ),
    Mutant(
        "automatic ratio from the previous step alone",
        "sampling/solver.py",
        "integrals = (rise, span - rise,",
        "integrals = (rise, span / 2.0,",
        MULTISTEP_TESTS,
    ),
    Mutant(
        "third order with the second's weights",
        "sampling/solver.py",
        "span**2 - 2.0 * (span - rise))",
        "span**2 - (span - rise))",
        MULTISTEP_TESTS,
    ),
    Mutant(
        "pure noise taken for an estimate like others",
        "sampling/solver.py",
        "[point.log_ratio for point in reversed(points) if math.isfinite(point.log_ratio)]",
        "[max(point.log_ratio, -1.0) for point in reversed(points)]",
        MULTISTEP_TESTS,
    ),
    Mutant(
        "corrected with the weights of both ends swapped",
        "sampling/solver.py",
        "return _Corrector(ratio * SAMPLE + (rise - new) * t.x_hat, (), new)",
        "return _Corrector(ratio * SAMPLE + new * t.x_hat, (), rise - new)",
        MULTISTEP_TESTS,
    ),
    Mutant(
        "steps with fresh noise corrected",
        "sampling/solver.py",
        "if settings.solver_order == 1 or settings.rho(t, s):",
        "if settings.solver_order == 1:",
        MULTISTEP_TESTS,
    ),
    Mutant(
        "a corrected sample without its estimate",
        "sampling/runs.py",
        "            output = call.x_hat.output_for(x, x_hat)\n",
        "",
        MULTISTEP_TESTS,
    ),
    Mutant(
        "a call made again corrected twice",
        "sampling/runs.py",
        "self._history, self._base = self._history[1:], None",
        "self._history = self._history[1:]",
        MULTISTEP_TESTS,
    ),
    Mutant(
        "clipping lost when a sample is corrected",
        "sampling/runs.py",
        "x_hat = call.x_hat(x, output, change)\n            x, change",
        "x_hat = call.x_hat(x, output)\n            x, change",
        MULTISTEP_TESTS,
    ),
    Mutant(
        "second order that is a multistep method asks for half the steps",
        "sampling/solver.py",
        'return self.solver_order == 2 and self.solver_type != "multistep"',
        "return self.solver_order == 2",
        MULTISTEP_TESTS,
    ),
    Mutant(
        "stochasticity and its complement swapped",
        "sampling/solver.py",
        "    noise = s.alpha * math.sqrt(settings.rho(t, s))",
        "    noise = s.alpha * math.sqrt(1.0 - settings.rho(t, s))",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "auto stochasticity silently 0",
        "sampling/solver.py",
        "return min(abs(s.t - t.t) * 2.0 * alpha / alpha_s**2, 1.0)",
        "return 0.0",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "corrector ignores the second slope",
        "sampling/solver.py",
        "rise * s.x_hat + fall * s.z_hat",
        "rise * t.x_hat + fall * t.z_hat",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "correction discards the injected noise",
        "sampling/solver.py",
        "corrects=True, noise=s.alpha * math.sqrt(rho))",
        "corrects=True)",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "history lost at every correction",
        "sampling/runs.py",
        "            if not call.corrects:\n                self._history = []",
        "            self._history = []",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "published correction subtracts the slopes",
        "sampling/runs.py",
        "(0.5 * past.z_ahead + 0.5 * z_hat)",
        "(0.5 * past.z_ahead - 0.5 * z_hat)",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "user's sigmas are warped",
        "sampling/timesteps.py",
        '        t = _check_falling(convention.time_of_sigma(levels), "sigmas", 0.0)\n',
        "        t = sampler_grid(len(levels), spacing, convention, mu)\n",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "shift and mu lost",
        "sampling/timesteps.py",
        "        t = spacing.shift_times(t, mu, convention) if convention.is_flow else t\n",
        "",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "timesteps end with a network call at data",
        "sampling/timesteps.py",
        "        sigmas = torch.cat(",
        "        timesteps = torch.cat([timesteps, timesteps.new_zeros(1)])\n        sigmas = torch.cat(",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "state kept from the last run",
        "scheduler.py",
        "        self._step_index: int | None = None\n",
        '        self._step_index = getattr(self, "_step_index", None)\n',
        SCHEDULER_TESTS,
    ),
    Mutant(
        "begin index stored and never read",
        "scheduler.py",
        "            self._step_index = self._begin_index or 0",
        "            self._step_index = 0",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "state rounded to half precision at every step",
        "sampling/precision.py",
        "    if last is not None and last.is_behind(sample):",
        "    if False:",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "noise ignores the generator",
        "scheduler.py",
        "randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)",
        "torch.randn(like.shape, dtype=like.dtype)",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "index looked up on the device",
        "scheduler.py",
        "run.step(index, x, output,",
        "run.step((self.timesteps - timestep).abs().argmin().item(), x, output,",
        SCHEDULER_TESTS,
    ),
    Mutant(
        "state in float64 on the device",
        "sampling/precision.py",
        "torch.float64 if is_wide else torch.promote_types(sample.dtype, torch.float32)",
        "torch.float64",
        SCHEDULER_TESTS,
    ),
    # Pipeline
    Mutant(
        "null class fixed at 1000",
        "network_calls.py",
        "torch.full_like(labels, null)",
        "torch.full_like(labels, 1000)",
        PIPELINE_TESTS,
    ),
    Mutant(
        "guidance interval in the network's own time",
        "network_calls.py",
        "for t in times]",
        "for t in (scheduler.timesteps / 1000).tolist()]",
        PIPELINE_TESTS,
    ),
    Mutant(
        "learned variances not cut off",
        "network_calls.py",
        "return output[:, : sample.shape[1]].float()",
        "return output.float()",
        PIPELINE_TESTS,
    ),
    Mutant(
        "given latents ignored",
        "pipeline.py",
        "        if latents is None:\n            latents = randn_tensor",
        "        if True:\n            latents = randn_tensor",
        PIPELINE_TESTS,
    ),
    Mutant(
        "latent output is decoded",
        "pipeline.py",
        '        if output_type == "latent":\n            return latents\n',
        '        if output_type == "latent":\n            output_type = "pt"\n',
        PIPELINE_TESTS,
    ),
    Mutant(
        "pickled weights accepted",
        "pipeline.py",
        '        kwargs.setdefault("use_safetensors", True)\n',
        "",
        PIPELINE_TESTS,
    ),
    # Autoencoders
    Mutant(
        "latents of AutoencoderTiny and VQModel looked for under one name",
        "autoencoders.py",
        'LATENT_NAMES = ("latents", "latent")',
        'LATENT_NAMES = ("latent",)',
        AUTOENCODER_TESTS,
    ),
    Mutant(
        "latents of AutoencoderRAE scaled twice",
        "autoencoders.py",
        'SCALED_INSIDE, UNIT_RANGE = {"AutoencoderRAE"}',
        'SCALED_INSIDE, UNIT_RANGE = {""}',
        AUTOENCODER_TESTS,
    ),
    Mutant(
        "a decoder's noise from the global state",
        "autoencoders.py",
        '"generator": generator, "num_frames"',
        '"generator": None, "num_frames"',
        AUTOENCODER_TESTS,
    ),
    Mutant(
        "FLUX.2's latents without the batch norm's statistics",
        "autoencoders.py",
        "mean, (module.bn.running_var.to(like) + config.batch_norm_eps).rsqrt()",
        "mean, torch.ones_like(module.bn.running_var.to(like))",
        AUTOENCODER_TESTS,
    ),
    # Labels
    Mutant(
        "folders numbered by the alphabet",
        "labels.py",
        "self._by_name(labels) if model.names else self._by_order(labels)",
        "self._by_order(labels)",
        LABEL_TESTS,
    ),
    Mutant(
        "the names of DiTPipeline not read",
        "labels.py",
        'for name, index in (getattr(pipe, "labels", None) or {}).items():',
        "for name, index in {}.items():",
        ("tests/training/test_classes.py",),
    ),
    Mutant(
        "a name of two classes taken for the first",
        "labels.py",
        "if len(ids) == 1:",
        "if ids:",
        LABEL_TESTS,
    ),
    Mutant(
        "two folders of one class merged without a word",
        "labels.py",
        "        self._check_distinct(found)\n",
        "",
        LABEL_TESTS,
    ),
    Mutant(
        "a label that is no class counted as a corrupt image",
        "data/images.py",
        '            labels["class_labels"] = self.class_of(labels["class_labels"])\n        return {"pixels"',
        '            try:\n                labels["class_labels"] = self.class_of(labels["class_labels"])\n'
        '            except ValueError:\n                return None\n        return {"pixels"',
        ("tests/data/test_latent_cache.py",),
    ),
    Mutant(
        "labels left out of the cache's identity",
        "data/latent_cache.py",
        '"fingerprint": dict(fingerprint), **_labels_of(items)}',
        '"fingerprint": dict(fingerprint)}',
        ("tests/data/test_latent_cache.py",),
    ),
    Mutant(
        "classes that fit by chance on the samples that chose them",
        "training/agreement.py",
        "if halves[i] != half and chosen",
        "if halves[i] == half and chosen",
        AGREEMENT_TESTS,
    ),
    Mutant(
        "labels out of range unseen by the doctor",
        "training/agreement.py",
        "return values[(values < 0) | (values >= number)].tolist()",
        "return []",
        AGREEMENT_TESTS,
    ),
    Mutant(
        "the doctor trusts the labels of a cache of another model",
        "training/findings.py",
        "if int(index) in classes.names and int(index) not in classes.ids_of(name)",
        "if False",
        AGREEMENT_TESTS,
    ),
    Mutant(
        "the class names of DiTPipeline are not saved",
        "training/export.py",
        "        keep_class_names(pipeline)\n",
        "",
        ("tests/training/test_export.py",),
    ),
    Mutant(
        "training on a cache of other classes",
        "training/requirements.py",
        "        _check_names(dataset, named or classes)\n",
        "",
        ("tests/training/test_classes.py",),
    ),
    Mutant(
        "caches of an earlier version are not told",
        "training/findings.py",
        'and "class_counts" not in index:',
        "and not index:",
        ("tests/training/test_classes.py",),
    ),
    # Early checks
    Mutant(
        "a cache is removed by a pipeline without an autoencoder",
        "training/commands.py",
        "    encoder_of(pipeline)\n",
        "",
        ("tests/training/test_commands.py",),
    ),
    Mutant(
        "the length of prompts is taken and has no effect",
        "training/commands.py",
        'if "max_sequence_length" not in inspect.signature',
        'if "prompt" not in inspect.signature',
        ("tests/training/test_commands.py",),
    ),
    Mutant(
        "the name of a repository is read after the training",
        "hub.py",
        "        validate_repo_id(name)\n",
        "        pass\n",
        ("tests/test_early_checks.py",),
    ),
    Mutant(
        "batches that no memory holds",
        "training/setting_ranges.py",
        "lambda value: value <= 1_000_000,",
        "lambda value: True,",
        ("tests/training/test_setting_ranges.py",),
    ),
    Mutant(
        "images without number are drawn",
        "generation/images.py",
        "    check(GENERATE_ARGUMENTS, locals())\n",
        "",
        ("tests/generation/test_images.py",),
    ),
    Mutant(
        "a solver of the same name is replaced",
        "solver_study/commands.py",
        "        if name in solvers:\n",
        "        if not name:\n",
        ("tests/test_early_checks.py",),
    ),
    Mutant(
        "a cache of diffusers without effect",
        "network_caches.py",
        'if not any(module or kind == "faster_cache" for module, _, _ in _cache_hooks(network)):',
        "if not has_cache(network):",
        ("tests/test_network_caches.py",),
    ),
    Mutant(
        "the output folder is looked at after the run",
        "training/requirements.py",
        '    check_writable(config.output_dir, "output_dir", folder=True)\n',
        "",
        EARLY_TESTS,
    ),
    Mutant(
        "the reference is read after all sampling",
        "image_metrics/requirements.py",
        "        check_width(found.statistics, network)\n",
        "        pass\n",
        ("tests/image_metrics/test_requirements.py",),
    ),
    Mutant(
        "sizes that are no whole latents are cut",
        "training/requirements.py",
        "if any(side % factor for side in sides):",
        "if False:",
        ("tests/training/test_requirements.py",),
    ),
    Mutant(
        "latents of another size are trained",
        "training/requirements.py",
        "if shape != expected:",
        "if False:",
        ("tests/training/test_requirements.py",),
    ),
    # Conventions and stock configs
    Mutant(
        "first step of a chain taken for the data",
        "sampling/conventions.py",
        "lambda t: t * num_steps - 1.0,",
        "lambda t: t * (num_steps - 1.0),",
        CONVENTION_TESTS,
    ),
    Mutant(
        "zero terminal signal-to-noise ignored",
        "sampling/beta_schedules.py",
        "    if rescale_betas_zero_snr:\n",
        "    if False:\n",
        CONVENTION_TESTS,
    ),
    Mutant(
        "fitted solver used at other times",
        "sampling/fitted.py",
        "return distance <= TOLERANCE * max(map(abs, self.timesteps))",
        "return True",
        FITTED_TESTS,
    ),
    Mutant(
        "fitted solver used in the middle of a run",
        "sampling/runs.py",
        "if fitted is not None and begin_index == 0 and",
        "if fitted is not None and",
        FITTED_TESTS,
    ),
    Mutant(
        "corrector left out of a plan's table",
        "sampling/fitted.py",
        "if not index or not weight:",
        "if True:",
        FITTED_TESTS,
    ),
    Mutant(
        "fit decided by the seeds that end elsewhere",
        "solver_study/least_squares.py",
        "return 1.0 / (squares.quantile(QUANTILE) + squares).clamp(min=1e-30)",
        "return torch.ones_like(squares)",
        FIT_TESTS,
    ),
    Mutant(
        "ridge chosen on the seeds of the fit",
        "solver_study/least_squares.py",
        "for rows in (is_fitted, ~is_fitted))",
        "for rows in (is_fitted, is_fitted))",
        FIT_TESTS,
    ),
    Mutant(
        "points of a path taken from calls that are corrected afterwards",
        "solver_study/solutions.py",
        "if self._now is not None and t < self._now[0]:",
        "if self._now is not None:",
        ("tests/solver_study/test_solutions.py",),
    ),
    Mutant(
        "refinement that is no better is kept",
        "solver_study/refine.py",
        "if error < min(fit.error, math.inf if best is None else best.error):",
        "if best is None:",
        ("tests/solver_study/test_refine.py",),
    ),
    Mutant(
        "end of a chain at its first step ignored",
        "sampling/runs.py",
        'if config["ends_at_first_step"] else None',
        "if False else None",
        CONVENTION_TESTS,
    ),
    Mutant(
        "CogVideoX's shift ignored",
        "sampling/beta_schedules.py",
        "    abar = abar / (snr_shift_scale + (1.0 - snr_shift_scale) * abar)\n",
        "",
        CONVENTION_TESTS,
    ),
    Mutant(
        "a flow's shift under its other name ignored",
        "sampling/stock_configs.py",
        'said.get("flow_shift", said.get("shift", 1.0))',
        'said.get("shift", 1.0)',
        CONVENTION_TESTS,
    ),
    Mutant(
        "defaults of the stock class ignored",
        "sampling/stock_configs.py",
        "said = {**own, **config}",
        "said = {**config}",
        CONVENTION_TESTS,
    ),
    Mutant(
        "stock defaults give way to ours",
        "sampling/swap.py",
        'if name != "_use_default_values"}',
        'if name not in ["_use_default_values", *config.get("_use_default_values", [])]}',
        CONVENTION_TESTS,
    ),
    Mutant(
        "stock settings lost as keywords",
        "sampling/swap.py",
        "{**stock, **theirs}",
        "stock",
        SWAP_TESTS,
    ),
    Mutant(
        "a second swap reads our settings as the stock scheduler's",
        "sampling/swap.py",
        "_stock_part(config, defaults) if is_own",
        "config if is_own",
        SWAP_TESTS,
    ),
    Mutant(
        "settings of the sampler lost at a second swap",
        "sampling/swap.py",
        "ours = _changed_settings(config, {**defaults, **_translation(stock)}, defaults) | ours",
        "ours = ours",
        SWAP_TESTS,
    ),
    Mutant(
        "modules of saved components not there for diffusers",
        "__init__.py",
        "    defer(_component)",
        "    pass",
        LOADING_TESTS,
    ),
    Mutant(
        "two threads run a deferred module at once",
        "deferred.py",
        "            if type(self) is DeferredModule:\n",
        "            if True:\n",
        ("tests/test_deferred.py",),
    ),
    Mutant(
        "a saved folder says nothing of the import",
        "readme.py",
        "    if file.exists():",
        "    if True:",
        LOADING_TESTS,
    ),
    Mutant(
        "the word false is true in a stock setting",
        "sampling/stock_configs.py",
        "    check(READ_SETTINGS, said)\n",
        "",
        SWAP_TESTS,
    ),
    Mutant(
        "typos dropped without a word",
        "scheduler.py",
        "        swap.warn_of_unknown()\n",
        "",
        SWAP_TESTS,
    ),
    Mutant(
        "our order read as a multistep solver's",
        "scheduler.py",
        "        self.register_to_config(_use_default_values=",
        "        dict(_use_default_values=",
        CONVENTION_TESTS,
    ),
    Mutant(
        "EDM's other sign",
        "sampling/conventions.py",
        '{"epsilon": 1.0, "v_prediction": -1.0}',
        '{"epsilon": 1.0, "v_prediction": 1.0}',
        CONVENTION_TESTS,
    ),
    Mutant(
        "input of a model in sigma space not scaled",
        "scheduler.py",
        "        if not self.convention.divides:\n            return sample\n",
        "        return sample\n",
        CONVENTION_TESTS,
    ),
    Mutant(
        "noise of an sCM model not of the data's size",
        "sampling/conventions.py",
        "lambda t: sigma_data * torch.sin(quarter * t),",
        "lambda t: torch.sin(quarter * t),",
        CONVENTION_TESTS,
    ),
    Mutant(
        "data estimates not clipped",
        "sampling/clipping.py",
        '        if not (config["clips_estimates"] and (config["clip_sample"] or config["thresholding"])):\n',
        "        if True:\n",
        CONVENTION_TESTS,
    ),
    Mutant(
        "clipped estimates change the noise too",
        "sampling/weights.py",
        "x_hat = Weights(-alpha_hat * scale / det, alpha / det, 1.0).snap()",
        "x_hat = Weights(-alpha_hat * scale / det, alpha / det, 0.9).snap()",
        CONVENTION_TESTS,
    ),
    Mutant(
        "latent consistency models asked between their steps",
        "sampling/grids.py",
        "steps = torch.ceil(t * known - 1e-4)",
        "steps = torch.floor(t * known)",
        CONVENTION_TESTS,
    ),
    Mutant(
        "terminal time lost",
        "sampling/grids.py",
        "stretch(t, self.shift_terminal) if self.shift_terminal else t",
        "t",
        CONVENTION_TESTS,
    ),
    Mutant(
        "spacing of the noise levels lost",
        "sampling/grids.py",
        "        if self.levels is None or len(t) < 2:\n",
        "        if True:\n",
        CONVENTION_TESTS,
    ),
    Mutant(
        "run without a begin index starts at the first time",
        "scheduler.py",
        "if self._begin_index is None and (index := first_place(timestep, self.timesteps)):",
        "if False:",
        CONVENTION_TESTS,
    ),
    Mutant(
        "tokens step to the schedule's time instead of the next below their own",
        "sampling/runs.py",
        "schedule < self.t - 1e-6",
        "schedule < 2.0",
        CONVENTION_TESTS,
    ),
    Mutant(
        "step computed from a guided estimate as from the network's output",
        "scheduler.py",
        "self._run.calls[index].x_hat.output_for(x, pred_original_sample.to(x.dtype))",
        "output.clone()",
        CONVENTION_TESTS,
    ),
    Mutant(
        "call made again extrapolates from itself",
        "sampling/runs.py",
        "self._history, self._base = self._history[1:], None",
        "self._base = None",
        CONVENTION_TESTS,
    ),
    # The paper's networks
    Mutant(
        "SwiGLU's gate first",
        "conversion/networks.py",
        '.0.proj", operation="gate last")',
        '.0.proj")',
        CONVERSION_TESTS,
    ),
    Mutant(
        "DDT's pairs by column first",
        "conversion/key_maps.py",
        "torch.cat([pairs[:, 1::2], pairs[:, 0::2]], dim=1)",
        "torch.cat([pairs[:, 0::2], pairs[:, 1::2]], dim=1)",
        CONVERSION_TESTS,
    ),
    Mutant(
        "all channels of LightningDiT guided",
        "conversion/networks.py",
        "            guided_channels=3,\n",
        "",
        CONVERSION_TESTS,
    ),
    Mutant(
        "time frequencies off by one in the divisor",
        "models/transformer_2d.py",
        "downscale_freq_shift=0,",
        "downscale_freq_shift=1,",
        CONVERSION_TESTS,
    ),
    Mutant(
        "DDT's label added again in the decoder",
        "models/transformer_2d.py",
        "condition = F.silu(time + features)",
        "condition = F.silu(time + self.class_embedder(class_labels)[:, None] + encoded)",
        CONVERSION_TESTS,
    ),
    Mutant(
        "EDM2's left-out class scales the time",
        "models/edm2_unet_2d.py",
        "torch.where(left_out[:, None], embedding, _mix(embedding, label, CLASS_WEIGHT))",
        "torch.where(left_out[:, None], embedding * 0.5**0.5, _mix(embedding, label, CLASS_WEIGHT))",
        ("tests/models", "tests/conversion"),
    ),
    Mutant(
        "EDM2's epsilon inside the root",
        "models/edm2_unet_2d.py",
        "magnitude = v.float().square().mean(dims, keepdim=True).sqrt() + EPSILON",
        "magnitude = (v.float().square().mean(dims, keepdim=True) + EPSILON).sqrt()",
        CONVERSION_TESTS,
    ),
    Mutant(
        "the rest of a checkpoint is passed over",
        "conversion/key_maps.py",
        '"not known": _keys_beyond(state_dict, expected),',
        '"not known": [],',
        CONVERSION_TESTS,
    ),
    Mutant(
        "guidance interval of a reversed network as it stands",
        "conversion/reference.py",
        "(1.0 - stop, 1.0 - start)",
        "(start, stop)",
        CONVERSION_TESTS,
    ),
    Mutant(
        "EDM2's pictures read as [-1, 1]",
        "conversion/convert.py",
        "do_normalize=known is None or known.do_normalize,",
        "do_normalize=True,",
        CONVERSION_TESTS,
    ),
    Mutant(
        "averaged weights passed over",
        "conversion/names.py",
        'GROUPS = (*AVERAGES, "model", "state_dict", ',
        'GROUPS = ("model", *AVERAGES, "state_dict", ',
        CONVERSION_TESTS,
    ),
    Mutant(
        "a size as one tensor has it, not as most",
        "conversion/key_maps.py",
        "return Counter(found).most_common(1)[0][0]",
        "return found[0]",
        CONVERSION_TESTS,
    ),
    Mutant(
        "a patch of 2 whatever the network",
        "conversion/sizes.py",
        '"patch_size": None,',
        '"patch_size": 2,',
        CONVERSION_TESTS,
    ),
    Mutant(
        "EDM2's heads of 64 whatever the network",
        "conversion/sizes.py",
        "return 64 if widths[0] in EDM2_WIDTHS.values() else None",
        "return 64",
        CONVERSION_TESTS,
    ),
    Mutant(
        "EDM2's frequencies in the dtype of the weights",
        "conversion/networks.py",
        "kept = model._keep_in_fp32_modules or ()",
        "kept = ()",
        CONVERSION_TESTS,
    ),
    Mutant(
        "EDM2's class read without a call of its module",
        "models/edm2_unet_2d.py",
        "label = self.class_embedding(class_labels.masked_fill(left_out, 0))",
        "label = EDM2Embedding.forward(self.class_embedding, class_labels.masked_fill(left_out, 0))",
        ("tests/models",),
    ),
    Mutant(
        "draws where means of the posterior are asked for",
        "autoencoders.py",
        "posterior.mode() if posterior_mean else posterior.sample(generator)",
        "posterior.sample(generator)",
        ("tests/training/test_encoding.py",),
    ),
    Mutant(
        "VA-VAE's decoder levels counted from the lowest",
        "conversion/autoencoders.py",
        'f"decoder.up.{levels - 1 - int(match[1])}"',
        'f"decoder.up.{int(match[1])}"',
        CONVERSION_TESTS,
    ),
    # Evaluation
    Mutant(
        "Fréchet distance without the root of the covariances' product",
        "image_metrics/statistics.py",
        "sigma_1.trace() + sigma_2.trace() - 2.0 * root",
        "sigma_1.trace() + sigma_2.trace()",
        METRIC_TESTS,
    ),
    Mutant(
        "statistics with NaN go on to LAPACK",
        "image_metrics/statistics.py",
        '        check_finite("mean", self.mean)\n        check_finite("covariance", self.covariance)\n',
        "",
        BAD_VALUE_TESTS,
    ),
    Mutant(
        "features with NaN are kept until the metrics",
        "image_metrics/features.py",
        '    check_finite(name, value, remedy="Compute the features in float32.")\n',
        "",
        BAD_VALUE_TESTS,
    ),
    Mutant(
        "solutions with NaN are kept",
        "solver_study/solutions.py",
        "return found if bool(found.isfinite().all()) else None",
        "return found",
        BAD_VALUE_TESTS,
    ),
    Mutant(
        "an image with NaN becomes a black one",
        "image_metrics/samples.py",
        '    check_finite("pixels", pixels, f"the samples of {str(file)!r}", SAMPLING_REMEDY)\n',
        "",
        BAD_VALUE_TESTS,
    ),
    Mutant(
        "latents with NaN train for ten steps",
        "training/batches.py",
        '                check_finite(name, value, f"item {index} of the data set", '
        '"Encode it again, in float32 or bfloat16.")\n',
        "                pass\n",
        ("tests/training/test_trainer.py", "tests/training/test_batches.py"),
    ),
    Mutant(
        "a picture is its own nearest neighbour",
        "image_metrics/statistics.py",
        "kthvalue(neighbours + 1)",
        "kthvalue(neighbours)",
        METRIC_TESTS,
    ),
    Mutant(
        "metrics added up over processes",
        "image_metrics/statistics.py",
        '{"sync_on_compute": False}',
        "{}",
        (
            "tests/image_metrics/test_evaluate.py",
            "tests/image_metrics/test_samples.py",
            "tests/image_metrics/test_commands.py",
        ),
    ),
    Mutant(
        "sFID's channels first",
        "image_metrics/features.py",
        "maps[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)",
        "maps[:, :SPATIAL_CHANNELS].flatten(1)",
        ("tests/image_metrics/test_features.py",),
    ),
    Mutant(
        "pictures of mixed sizes in the order of their sizes",
        "image_metrics/features.py",
        "else whole[order]",
        "else whole",
        ("tests/image_metrics/test_features.py",),
    ),
    Mutant(
        "seeds that differ above 32 bits, which torch does not look at",
        "randomness.py",
        "return (seed * STRIDE + index) % 2**32",
        "return seed * 2**32 + index",
        ("tests/image_metrics/test_evaluate.py", "tests/data/test_images.py", "tests/image_metrics/test_samples.py"),
    ),
    Mutant(
        "torn files of samples taken for whole",
        "image_metrics/samples.py",
        "if _rows_in(file) < len(part):",
        "if not file.is_file():",
        (
            "tests/image_metrics/test_evaluate.py",
            "tests/image_metrics/test_samples.py",
            "tests/image_metrics/test_commands.py",
        ),
    ),
    # The command line
    Mutant(
        "an unknown user's folder is a fault of the package",
        "names.py",
        "return Path(os.path.expanduser(name))",
        "return Path(name).expanduser()",
        ("tests/test_names.py",),
    ),
    Mutant(
        "a long prompt is a file whose name is too long",
        "generation/inputs.py",
        "if len(args.prompts) > 1 or not path_exists(file) or not file.is_file():",
        "if len(args.prompts) > 1 or not file.is_file():",
        ("tests/generation/test_inputs.py",),
    ),
    Mutant(
        "an argument of the call is given twice",
        "generation/inputs.py",
        "        if name in taken:\n",
        "        if not name:\n",
        ("tests/generation/test_inputs.py",),
    ),
    Mutant(
        "a height of 0 is the pipeline's own",
        "generation/conditions.py",
        "    check(CALL_ARGUMENTS, call)\n",
        "",
        ("tests/generation/test_conditions.py",),
    ),
    Mutant(
        "what a pipeline refuses is a fault of the package",
        "generation/generate.py",
        "            with _naming_refusals(pipe, call or {}):\n",
        "            if True:\n",
        ("tests/generation/test_generate.py",),
    ),
    Mutant(
        "a plot that cannot be written ends the run",
        "training/trainer.py",
        'with _only_warning("No plot was written"):',
        "if True:",
        ("tests/training/test_runs.py",),
    ),
    Mutant(
        "images without labels are none",
        "data/image_sources.py",
        "images, labels = images_and_labels(path, split)",
        "images, labels = load_idx_images(path, split)",
        ("tests/data/test_idx.py",),
    ),
    Mutant(
        "letters that the terminal lacks end the command",
        "console.py",
        'stream.reconfigure(errors="backslashreplace")',
        "stream.reconfigure()",
        ("tests/test_console.py",),
    ),
    Mutant(
        "results in a folder called ~",
        "console.py",
        "setattr(args, name, os.path.expanduser(value))",
        "setattr(args, name, value)",
        ("tests/test_console.py",),
    ),
    Mutant(
        "a typo is asked of the Hub",
        "names.py",
        "if not hint and _is_hub_name(text):",
        "if not text.startswith(('.', '/', '~')):",
        ("tests/test_names.py",),
    ),
    Mutant(
        "weights that a folder lacks are random",
        "loading.py",
        "if empty or (held and len(missing) > len(others)):",
        "if False:",
        ("tests/test_hostile_files.py",),
    ),
    Mutant(
        "a reader that leaves ends the command",
        "console.py",
        "os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())",
        "raise",
        ("tests/test_console.py",),
    ),
    Mutant(
        "guided sampling of a few-step LoRA",
        "generation/commands.py",
        '{"num_inference_steps": 4, **_no_guidance(pipe)}',
        '{"num_inference_steps": 4}',
        ("tests/generation/test_commands.py",),
    ),
    Mutant(
        "schedules of a recipe in steps of the recipe's own length",
        "training/recipes.py",
        'steps = self.settings["max_train_steps"] if max_train_steps is None else max_train_steps',
        'steps = self.settings["max_train_steps"]',
        ("tests/training/test_recipes.py",),
    ),
    Mutant(
        "the recipe wins over what is given",
        "training/settings.py",
        "override(get_recipe(name).settings_for(steps), others)",
        "override(others, get_recipe(name).settings_for(steps))",
        ("tests/training/test_recipes.py",),
    ),
    Mutant(
        "a ratio leaves the recipe's schedule in force",
        "training/settings.py",
        "dropped = RATIOS if any(name in others for name in RATIOS) else ()",
        "dropped = ()",
        ("tests/training/test_settings.py",),
    ),
    Mutant(
        "the schedule of a run of version 0.1.0 is lost",
        "training/config.py",
        "before = {**_defaults(), **in_current_form(saved)}",
        "before = {**_defaults(), **saved}",
        ("tests/training/test_settings.py",),
    ),
    Mutant(
        "True is a whole number of steps",
        "training/setting_types.py",
        "        if isinstance(value, bool):\n            return self.base is bool\n",
        "",
        ("tests/training/test_setting_types.py",),
    ),
    Mutant(
        "1.5 steps of a list in JSON are 1",
        "training/setting_types.py",
        "        if not number.is_integer():\n            raise\n",
        "",
        ("tests/training/test_setting_types.py",),
    ),
    Mutant(
        "an adapter trained against an averaged teacher",
        "training/config.py",
        "self.teacher_decay = 1.0 if isinstance(self.lora_rank, int) and self.lora_rank else 0.999",
        "self.teacher_decay = 0.999",
        ("tests/training/test_recipes.py",),
    ),
    Mutant(
        "help loads torch",
        "training/ratios.py",
        "from collections.abc import Sequence\n",
        "from collections.abc import Sequence\n\nimport torch  # noqa: F401\n",
        HELP_TESTS,
    ),
    # Images
    Mutant(
        "errors of Pillow that end the run",
        "data/images.py",
        "        except Exception as error:\n            return self._left_out",
        "        except (OSError, ValueError) as error:\n            return self._left_out",
        ("tests/data/test_image_files.py",),
    ),
    Mutant(
        "long thin images scaled as a whole",
        "data/images.py",
        "if covering[0] * covering[1] > MAX_COVERING_RATIO * height * width:",
        "if False:",
        ("tests/data/test_image_files.py",),
    ),
    Mutant(
        "EPS opened by Ghostscript",
        "data/image_files.py",
        "formats=[each for each in FORMATS if each in Image.OPEN]",
        "formats=None",
        ("tests/data/test_image_files.py",),
    ),
    Mutant(
        "files outside the folder read",
        "data/image_files.py",
        "        return any(real.is_relative_to(os.path.realpath(folder)) for folder in self.folders)",
        "        return real.exists()",
        ("tests/data/test_image_files.py", "tests/data/test_image_sources.py"),
    ),
    Mutant(
        "pipes and devices read",
        "data/image_files.py",
        "if path.exists() and not path.is_file():",
        "if False:",
        ("tests/data/test_image_files.py",),
    ),
    Mutant(
        "files of any size read",
        "data/image_files.py",
        "if max(size, len(data)) > MAX_FILE_BYTES:",
        "if False:",
        ("tests/data/test_image_files.py",),
    ),
    Mutant(
        "hidden colours of transparent images seen",
        "data/image_modes.py",
        "if image.has_transparency_data:",
        "if False:",
        ("tests/data/test_image_modes.py",),
    ),
    Mutant(
        "32-bit integers taken for 16 bits",
        "data/image_modes.py",
        'if image.mode == "I" and image.format not in SIXTEEN_BIT_FORMATS:',
        "if False:",
        ("tests/data/test_image_modes.py",),
    ),
    Mutant(
        "captions as Python writes a list",
        "data/images.py",
        "    if isinstance(value, list | tuple):\n",
        "    if isinstance(value, list | tuple):\n        return str(value)\n",
        ("tests/data/test_image_sources.py",),
    ),
    Mutant(
        "images that the metadata does not list vanish",
        "data/image_sources.py",
        "left_out=folder.passed_over(name for names in read.values() for name in names),",
        "left_out=(),",
        ("tests/data/test_image_folders.py",),
    ),
    Mutant(
        "a gzipped IDX file read to its end, whatever its header says",
        "data/idx.py",
        "content = file.read(min(expected, MAX_BYTES) + 1)",
        "content = file.read()",
        ("tests/data/test_image_sources.py",),
    ),
    # Values are refused by name
    Mutant(
        "True counts as a number",
        "constraints.py",
        "if isinstance(value, bool | np.bool_) or not isinstance",
        "if not isinstance",
        ("tests/test_constraints.py",),
    ),
    Mutant(
        "a flag is whatever Python takes for one",
        "constraints.py",
        'return Setting((("True or False", lambda value: isinstance(value, bool)),))',
        'return Setting((("True or False", lambda value: True),))',
        ("tests/test_constraints.py", "tests/data/test_arguments.py"),
    ),
    Mutant(
        "settings of the loss are not checked",
        "loss.py",
        "        check(LOSS_SETTINGS, vars(self))\n",
        "",
        ("tests/test_constraints.py",),
    ),
    Mutant(
        "an evaluation samples before it looks at its arguments",
        "image_metrics/evaluate.py",
        "    check(EVALUATE_ARGUMENTS, locals())\n",
        "",
        ("tests/image_metrics/test_arguments.py",),
    ),
    Mutant(
        "weights that are not there stay empty",
        "loading.py",
        "    if empty or (held and len(missing) > len(others)):",
        "    if held and len(missing) > len(others):",
        ("tests/test_damaged_files.py",),
    ),
]


def outcome(mutant: Mutant | None) -> tuple[bool, str]:
    """Whether the tests fail with the slip in, and the first one that does."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "src" / PACKAGE, Path(folder) / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        tests: set[str] = set()
        if mutant is None:
            tests.update(test for each in MUTANTS for test in each.tests)
        else:
            file = Path(folder) / PACKAGE / mutant.file
            text = file.read_text()
            if text.count(mutant.before) != 1:
                raise SystemExit(f"{mutant.name}: `before` stands {text.count(mutant.before)} times in {mutant.file}.")
            file.write_text(text.replace(mutant.before, mutant.after))
            tests.update(mutant.tests)
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *sorted(tests)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        failure = re.search(r"^(?:FAILED|ERROR) (\S+)", result.stdout, re.MULTILINE)
        if result.returncode not in (0, 1):
            raise SystemExit(
                f"{mutant.name if mutant else 'no slip'}: pytest ended with {result.returncode}:\n{result.stdout}"
            )
        return result.returncode == 1, failure.group(1).removeprefix("tests/") if failure else ""


def main() -> int:
    """Run the slips and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of slips; all by default")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not args.only or mutant.name in args.only]
    if not args.only and outcome(None)[0]:
        raise SystemExit("The tests fail without any slip: mend that first.")
    survived = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for mutant, (caught, test) in zip(chosen, pool.map(outcome, chosen), strict=True):
            survived += not caught
            print(f"{'caught  ' if caught else 'SURVIVED'} | {mutant.name} ({mutant.file}) | {test}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} slips caught")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
