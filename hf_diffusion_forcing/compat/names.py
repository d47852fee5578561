"""Which undocumented names of transformers and torch this package relies on: the table, and what checks it."""

import dataclasses
import inspect
from importlib import import_module
from importlib.metadata import version
from typing import Any

VERSIONS = ("5.23", "5.24")
"""The minor versions of transformers this package was tried with, the oldest first. setup.cfg allows no others."""

TORCH = ("2.13",)
"""The minor version of torch its names were read in. setup.cfg allows others, in which the names are looked for too."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A name of transformers or torch that this package relies on.

    Attributes:
        path: `module:attribute`, the attribute dotted where it is inside a class. `(argument, ...)` after it are
            arguments of a function; `#attribute` after a class is one that methods of the class set or read.
        read_in: the minor versions in which it was read. It does not exist in others of `VERSIONS`.
        why: what it is needed for.
    """

    path: str
    read_in: tuple[str, ...]
    why: str

    def is_expected(self) -> bool:
        """Whether the installed version should have it."""
        return self.path.startswith("torch") or installed() in self.read_in

    def exists(self) -> bool:
        """Whether the installed version has it, with these arguments."""
        path, _, arguments = self.path.removesuffix(")").partition("(")
        path, _, of_instances = path.partition("#")
        module, _, attributes = path.partition(":")
        try:
            found = import_module(module)
            for attribute in filter(None, attributes.split(".")):
                found = getattr(found, attribute)
        except (ImportError, AttributeError):
            return False
        if of_instances:
            functions = (f for base in found.__mro__ for f in vars(base).values() if inspect.isfunction(f))
            return any(of_instances in inspect.unwrap(f).__code__.co_names for f in functions)
        return not arguments or set(arguments.split(", ")) <= parameters(found)


def parameters(function: Any) -> set[str]:
    """Names of a function's parameters, or of those of an operator of torch."""
    if hasattr(function, "default"):
        return {argument.name for argument in function.default._schema.arguments}
    return set(inspect.signature(function).parameters)


def installed() -> str:
    """The minor version of the installed transformers, such as "5.24"."""
    return ".".join(version("transformers").split(".")[:2])


def missing() -> list[str]:
    """What `NAMES` says that is not so in the installed versions, and what each name is needed for."""
    problems = []
    for name in NAMES:
        if installed() in VERSIONS and name.exists() != name.is_expected():
            problems.append(f"{name.path} {'is gone' if name.is_expected() else 'is there'}: {name.why}")
    return problems


_HANDED_ON = "the name generate() keeps the cache under, and passes it to forward() by"
_OUTPUT = "the field of the cache in what generate() and forward() return"
_MODELS = "/v1/models answers with it; a served model overrides it"
_LOADING = "checkpoints are searched for files that may be missing"
_SERVER = "the server is put together of it, around one loaded model"
_SERVER_ERRORS = "overridden: a request is refused before its stream begins"
_SERVER_ENGINE = "overridden: the handlers generate with the engine"
_SERVER_SEED = "overridden: a request's seed is the sampler's"
_SERVER_MODEL = "overridden: the model that is served is loaded already"
_INIT = "initial weights are written by it, and loading skips what a checkpoint has"
_CLASSIFIER = "classifiers are a base model and this head"
_HRM_TEXT = "transformers.models.hrm_text.modeling_hrm_text:HrmText"
_HRM_ATTENTION = "overridden: its keys and values are in a RecurrentDepthCache; the stacks hand on its arguments"
_PACKED = "linear layers in oneDNN's blocked layout, or in FBGEMM's"
_PRECISION = "whether the processor is fast in this precision"

NAMES: tuple[Name, ...] = (
    # generate(): the steps that RecurrentDepthGenerationMixin overrides, and what they leave for later ones.
    Name(
        "transformers:GenerationMixin._prepare_generation_config(generation_config, kwargs)",
        VERSIONS,
        "overridden: takes the sampler's keywords out of the call",
    ),
    Name(
        "transformers:GenerationMixin._validate_generation_mode"
        "(generation_mode, generation_config, generation_mode_kwargs)",
        VERSIONS,
        "overridden: refuses what a sampler cannot do",
    ),
    Name(
        "transformers:GenerationMixin._prepare_model_inputs(inputs, bos_token_id, model_kwargs)",
        VERSIONS,
        "overridden: refuses an empty prompt",
    ),
    Name(
        "transformers:GenerationMixin._prepare_attention_mask_for_generation"
        "(inputs_tensor, generation_config, model_kwargs)",
        VERSIONS,
        "overridden: without a mask, only the pad ids before a prompt are padding",
    ),
    Name(
        "transformers:GenerationMixin._prepare_cache_for_generation"
        "(generation_config, model_kwargs, generation_mode, batch_size, max_cache_length)",
        VERSIONS,
        "overridden: makes a RecurrentDepthCache",
    ),
    Name(
        "transformers:GenerationMixin._sample(input_ids, logits_processor, stopping_criteria, generation_config, "
        "synced_gpus, streamer, model_kwargs)",
        VERSIONS,
        "overridden: decodes by the sampler",
    ),
    Name(
        "transformers:GenerationMixin._update_model_kwargs_for_generation(outputs, model_kwargs, num_new_tokens)",
        VERSIONS,
        "overridden: tokens that are added are no part of a bidirectional prompt",
    ),
    Name(
        "transformers:GenerationMixin._get_candidate_generator(model_kwargs)",
        VERSIONS,
        "overridden: an assistant is not told the model's depth and noise",
    ),
    Name(
        "transformers:GenerationMixin.adjust_generation_fn(generation_config)",
        VERSIONS,
        "overridden: a generation config made from a model's config keeps its special tokens alone",
    ),
    Name(
        "transformers:GenerationMixin.init_continuous_batching(generation_config)",
        VERSIONS,
        "overridden: generate_batch() begins here, and decodes in this package's loop",
    ),
    Name(
        "transformers.generation.continuous_batching.requests:GenerationOutput(request_id, prompt_ids, "
        "generated_tokens, logprobs, error, status, created_time, lifespan, timestamps)",
        VERSIONS,
        "what continuous batching returns",
    ),
    Name("transformers.generation.continuous_batching.requests:RequestStatus.FAILED", VERSIONS, "the end of a request"),
    Name("transformers:PreTrainedModel.generation_config_class", VERSIONS, "the class loaded generation configs get"),
    Name(
        "transformers:GenerationConfig#_from_model_config", VERSIONS, "set where a checkpoint has no generation config"
    ),
    Name("transformers:GenerationMixin#_mask_length", VERSIONS, "columns seen so far, where no mask is handed on"),
    Name("transformers:GenerationMixin#_pad_token_tensor", VERSIONS, "the pad token generate() has decided on"),
    Name("transformers:GenerationMixin.prepare_inputs_for_generation(past_key_values)", ("5.23",), _HANDED_ON),
    Name("transformers:GenerationMixin.prepare_inputs_for_generation(cache)", ("5.24",), _HANDED_ON),
    Name("transformers.generation:GenerateDecoderOnlyOutput.past_key_values", VERSIONS, _OUTPUT),
    Name("transformers.generation:GenerateDecoderOnlyOutput.cache", ("5.24",), _OUTPUT),
    Name("transformers.modeling_outputs:BaseModelOutputWithPast.past_key_values", VERSIONS, _OUTPUT),
    Name("transformers.modeling_outputs:BaseModelOutputWithPast.cache", ("5.24",), _OUTPUT),
    Name("transformers.modeling_outputs:CausalLMOutputWithPast.past_key_values", VERSIONS, _OUTPUT),
    Name("transformers.modeling_outputs:CausalLMOutputWithPast.cache", ("5.24",), _OUTPUT),
    Name(
        "transformers.utils.deprecation:deprecate_kwarg(new_name)",
        VERSIONS,
        "5.24 renames its own arguments by it, and so are ours",
    ),
    Name(
        "transformers.cache_utils:Cache.is_linear",
        VERSIONS,
        "generate() asks since 5.24 whether all layers are linear; of a cache without layers, as ours, all are",
    ),
    Name(
        "transformers.cache_utils:Cache.is_croppable",
        VERSIONS,
        "assisted generation asks since 5.24 whether all layers can be cropped",
    ),
    # Logits processors, stopping criteria and streamers that generate() makes or is given.
    Name(
        "transformers:PrefixConstrainedLogitsProcessor#_prefix_allowed_tokens_fn",
        VERSIONS,
        "the user's function, which must not fail on drafts",
    ),
    Name(
        "transformers:PrefixConstrainedLogitsProcessor#_num_beams",
        VERSIONS,
        "how many rows continue one prompt; since 5.24 those of num_return_sequences are counted, too",
    ),
    Name(
        "transformers:UnbatchedClassifierFreeGuidanceLogitsProcessor#unconditional_context",
        VERSIONS,
        "guidance is given a cache of this package's there, under the name of the version",
    ),
    Name(
        "transformers:UnbatchedClassifierFreeGuidanceLogitsProcessor#model",
        VERSIONS,
        "guidance calls the model without depth and noise, which are bound to it here",
    ),
    Name("transformers:EosTokenCriteria#eos_token_id", VERSIONS, "the ids that end a row, asked row by row"),
    Name("transformers:StoppingCriteriaList.max_length", VERSIONS, "the length limit of a call"),
    Name("transformers:TextDiffusionStreamer.put_draft", VERSIONS, "streamers that have it are shown the drafts"),
    # Models: what PreTrainedModel asks of a class, and files under other names.
    Name(
        "transformers:PreTrainedConfig.get_config_dict(pretrained_model_name_or_path)",
        VERSIONS,
        "wrapped: a config.json without model_type is recognised by its _class_name",
    ),
    Name(
        "transformers.conversion_mapping:register_checkpoint_conversion_mapping(model_type_or_class_name, mapping)",
        VERSIONS,
        "Parcae's value embeddings have another name in its files",
    ),
    Name("transformers.core_model_loading:WeightRenaming(source_patterns, target_patterns)", VERSIONS, "the same"),
    Name("transformers:PreTrainedModel._init_weights(module)", VERSIONS, "overridden: a family's initial weights"),
    Name("transformers:PreTrainedModel._no_split_modules", VERSIONS, "blocks that device_map='auto' keeps together"),
    Name(
        "transformers:PreTrainedModel._skip_keys_device_placement", VERSIONS, "accelerate's hooks must not move a cache"
    ),
    Name("transformers:PreTrainedModel._supports_sdpa", VERSIONS, "attn_implementation='sdpa' is accepted"),
    Name("transformers:PreTrainedConfig._attn_implementation", VERSIONS, "the kernel attention is computed by"),
    Name(
        "transformers:PreTrainedModel._check_and_adjust_attn_implementation(attn_implementation)",
        VERSIONS,
        "overridden: kernels that are not there are refused by name",
    ),
    Name(
        "transformers:PreTrainedModel._can_set_attn_implementation",
        VERSIONS,
        "overridden: set_attn_implementation() would change nothing",
    ),
    Name("transformers:PreTrainedModel._can_compile_fullgraph", VERSIONS, "generate() must not compile forward()"),
    Name("transformers:PreTrainedModel._tp_plan", VERSIONS, "how tensor parallelism splits the head"),
    Name("transformers:PreTrainedModel._tied_weights_keys", VERSIONS, "the head and the embedding are one tensor"),
    Name(
        "transformers:PreTrainedModel._keys_to_ignore_on_load_unexpected",
        VERSIONS,
        "tensors of published checkpoints that are computed here, or belong to a head that is not loaded",
    ),
    Name("transformers:PreTrainedModel.loss_function", VERSIONS, "the loss forward() returns, as other models' is"),
    Name("transformers.initialization:trunc_normal_(tensor, std)", VERSIONS, _INIT),
    Name("transformers.initialization:ones_", VERSIONS, _INIT),
    Name("transformers.initialization:zeros_", VERSIONS, _INIT),
    Name("transformers.modeling_layers:GenericForSequenceClassification", VERSIONS, _CLASSIFIER),
    Name("transformers.modeling_layers:GenericForTokenClassification", VERSIONS, _CLASSIFIER),
    Name(f"{_HRM_TEXT}Attention.forward(hidden_states, cycle_offset, kwargs)", VERSIONS, _HRM_ATTENTION),
    Name(f"{_HRM_TEXT}Stack.forward(hidden_states, cycle_offset, kwargs)", VERSIONS, _HRM_ATTENTION),
    Name(f"{_HRM_TEXT}Model#L_bp_cycles_padded", VERSIONS, "which passes of HRM-Text's low stack carry gradients"),
    Name(f"{_HRM_TEXT}Model#z_L_init", VERSIONS, "the stored start of HRM-Text's low state"),
    Name("transformers.modeling_layers:GradientCheckpointingLayer", VERSIONS, "blocks are checkpointed while training"),
    Name("transformers.modeling_rope_utils:ROPE_INIT_FUNCTIONS", VERSIONS, "the angles of llama3 RoPE scaling"),
    Name(
        "transformers.utils.hub:cached_files(cache_dir, force_download, local_files_only, token, revision, subfolder, "
        "_raise_exceptions_for_gated_repo, _raise_exceptions_for_missing_entries, "
        "_raise_exceptions_for_connection_errors)",
        VERSIONS,
        _LOADING,
    ),
    Name("transformers.utils:cached_file", VERSIONS, _LOADING),
    Name(
        "transformers.models.auto.configuration_auto:AutoConfig.register(model_type, config)",
        VERSIONS,
        "families are registered when this module has been imported (lazy_registration.py knows it by name)",
    ),
    Name(
        "transformers.models.auto.configuration_auto:CONFIG_MAPPING", VERSIONS, "whether a family is registered already"
    ),
    # `transformers serve`.
    Name(
        "transformers.cli.serving.chat_completion:ChatCompletionHandler(model_manager, generation_state)",
        VERSIONS,
        _SERVER,
    ),
    Name("transformers.cli.serving.completion:CompletionHandler(model_manager, generation_state)", VERSIONS, _SERVER),
    Name("transformers.cli.serving.response:ResponseHandler(model_manager, generation_state)", VERSIONS, _SERVER),
    Name("transformers.cli.serving.systemone:SystemOneHandler(model_manager, generation_state)", VERSIONS, _SERVER),
    Name(
        "transformers.cli.serving.transcription:TranscriptionHandler(model_manager, generation_state)",
        VERSIONS,
        _SERVER,
    ),
    Name("transformers.cli.serving.utils:GenerationState.get_manager(model_id, use_cb)", VERSIONS, _SERVER),
    Name(
        "transformers.cli.serving.utils:BaseGenerateManager.generate_streaming"
        "(model, processor, inputs, gen_config, request_id, response_parser)",
        VERSIONS,
        _SERVER_ENGINE,
    ),
    Name(
        "transformers.cli.serving.utils:BaseGenerateManager.generate_non_streaming"
        "(model, processor, inputs, gen_config, request_id)",
        VERSIONS,
        _SERVER_ENGINE,
    ),
    Name("transformers.cli.serving.utils:GenerationState.use_continuous_batching", VERSIONS, _SERVER_ENGINE),
    Name("transformers.cli.serving.utils:GenerationState.is_cb_alive", VERSIONS, "/health answers with it"),
    Name("transformers.cli.serving.utils:_StreamError#msg", VERSIONS, "the last item of a stream that failed"),
    Name(
        "transformers.cli.serving.utils:response_events_to_chunks(events)",
        VERSIONS,
        "tool calls and thoughts of a text, as the handlers stream them",
    ),
    Name(
        "transformers.cli.serving.chat_completion:ChatCompletionHandler.handle_request(body, request_id)",
        VERSIONS,
        _SERVER_ERRORS,
    ),
    Name(
        "transformers.cli.serving.completion:CompletionHandler.handle_request(body, request_id)",
        VERSIONS,
        _SERVER_ERRORS,
    ),
    Name(
        "transformers.cli.serving.response:ResponseHandler.handle_request(body, request_id)", VERSIONS, _SERVER_ERRORS
    ),
    Name(
        "transformers.cli.serving.server:build_server(completion_handler, response_handler, transcription_handler, "
        "systemone_handler, generation_state, enable_cors)",
        VERSIONS,
        _SERVER,
    ),
    Name(
        "transformers.cli.serving.chat_completion:ChatCompletionHandler._build_generation_config"
        "(body, model_generation_config)",
        VERSIONS,
        _SERVER_SEED,
    ),
    Name(
        "transformers.cli.serving.completion:CompletionHandler._build_generation_config(body, model_generation_config)",
        VERSIONS,
        _SERVER_SEED,
    ),
    Name(
        "transformers.cli.serving.response:ResponseHandler._build_generation_config(body, model_generation_config)",
        VERSIONS,
        _SERVER_SEED,
    ),
    Name("transformers.cli.serving.model_manager:ModelManager(force_model)", VERSIONS, _SERVER),
    Name("transformers.cli.serving.model_manager:ModelManager._load_processor", VERSIONS, _SERVER_MODEL),
    Name("transformers.cli.serving.model_manager:ModelManager._load_model", VERSIONS, _SERVER_MODEL),
    Name("transformers.cli.serving.model_manager:ModelManager.get_gen_models", ("5.23",), _MODELS),
    Name("transformers.cli.serving.model_manager:ModelManager.list_models", ("5.24",), _MODELS),
    # torch.
    Name("torch:ops.mkldnn._linear_pointwise(X, W, B, attr, scalars, algorithm)", TORCH, _PACKED),
    Name("torch:ops.mkldnn._is_mkldnn_bf16_supported", TORCH, _PRECISION),
    Name("torch:ops.mkldnn._is_mkldnn_fp16_supported", TORCH, _PRECISION),
    Name("torch:ops.mkldnn._reorder_linear_weight(self, batch_size)", TORCH, _PACKED),
    Name("torch:ops.quantized.linear_prepack_fp16(W, B)", TORCH, _PACKED),
    Name("torch:ops.quantized.linear_dynamic_fp16(X, W_prepack)", TORCH, _PACKED),
    Name("torch:Tensor._version", TORCH, "whether a weight was written to after it was packed"),
    Name("torch.nn:Module#_forward_hooks", TORCH, "whether a module has forward hooks, which may look at rows"),
    Name("torch.nn:Module#_forward_pre_hooks", TORCH, "the same, for hooks called before it"),
    Name("torch.nn:Module._apply(fn)", TORCH, "overridden: a packed weight that is moved or cast is dropped"),
)
