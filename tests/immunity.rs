//! Programs and patterns in a model's files that were written to hang, to fill the memory or to end the process:
//! template bombs, tokenizer bombs, and texts that make tokenizers slow. Rows 16 and 18 of the list of faults.
//!
//! Bounds of time are generous, because test machines are shared; the figures themselves are in the records.

// Helpers of a test may unwrap: a failure is a failed test.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use bantam_model::template::{ChatTemplate, Conversation, Data, OUTPUT_MAX, TemplateError};
use bantam_model::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// What one rendering may take here; alone on a machine it is a tenth of that.
const RENDERING_MAX: Duration = Duration::from_secs(10);

/// Renders a hostile template; what comes of it is short, and comes soon.
fn defuse(source: &str) -> Result<String, TemplateError> {
    let begin = Instant::now();
    let conversation = Conversation::new(vec![Data::message("user", "Hi")]);
    let result = ChatTemplate::from_text(source).and_then(|template| template.render(&conversation));
    let shown: String = source.chars().take(80).collect();
    assert!(begin.elapsed() < RENDERING_MAX, "{shown}: {:?}", begin.elapsed());
    if std::env::var_os("BANTAM_SHOW").is_some() {
        println!("{:.3} s: {shown}", begin.elapsed().as_secs_f64());
    }
    match &result {
        Ok(text) => assert!(text.len() <= OUTPUT_MAX, "{shown}"),
        Err(error) => assert!(error.to_string().len() < 5000, "{shown}: {error}"),
    }
    result
}

/// Loops, doublings and repetitions that would need more than any machine has.
const BOMBS: &[&str] = &[
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "{{ range(10**9) }}",
    "{{ range(10**30) | list }}",
    "{{ 'a' * 10**9 }}",
    "{{ [messages] * 10**9 }}",
    "{{ [[]] * 10**18 }}",
    "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(999) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(999) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(999) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(999) %}{% set ns.x = ns.x.join(ns.x) %}{% endfor %}",
    "{% set ns = namespace(x=[1, 2]) %}{% for i in range(999) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}\
        {% endfor %}{{ ns.x == ns.y }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f() %}{% for i in [1] %}{% if true %}{{ (f(([[1]]))) }}{% endif %}{% endfor %}{% endmacro %}{{ f() }}",
    "{% macro f(g) %}{{ g(g) }}{% endmacro %}{{ f(f) }}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns.x.x.x }}{{ ns }}{% set y = [ns] %}{% set ns.x = y %}{{ ns.x }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ messages | tojson(indent='x' * 10**7) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%.1000000000f' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:.1000000000f}'.format(1.5) }}",
    "{{ 'x'.center(10**9) }}",
    "{{ 'x'.ljust(10**12) }}",
    "{{ 'x'.zfill(10**18) }}",
    "{{ ('\\t' * 1000).expandtabs(10**9) }}",
    "{{ ('a' * 10**6).replace('', 'b' * 10**6) }}",
    "{{ 'a' | replace('a', 'b' * 10**8) | replace('b', 'c' * 10**8) }}",
    "{{ ('b' * 10**6).join('a' * 10**6) }}",
    "{{ ('a\\n' * 10**6) | indent(10**6) }}",
    "{{ 'a' | indent(10**18) }}",
    "{{ ('ab' * 10**6).count('') * 10**30 * 10**30 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 2 ** 126 * 2 ** 126 }}",
    "{{ -(-2 ** 127) }}{{ (-2 ** 127) // -1 }}{{ (-2 ** 127) % -1 }}{{ (-2 ** 127) | abs }}",
    "{{ 1e308 * 10 | int }}{{ (1e308 * 10) | round }}{{ 1.5 | round(10**9) }}",
    "{{ messages[10**30] }}{{ 'abc'[::10**30] }}{{ 'abc'[::-10**30] }}{{ 'abc'[-10**30:10**30:-1] }}{{ 'é'[0:2:-1] }}",
    "{{ [1] | batch(10**18, 0) | list }}",
    "{{ [1] | slice(10**18) | list }}",
    "{{ strftime_now('%c' * 10**7) }}",
    "{{ strftime_now('%1000000000d') }}",
    "{% for i in range(99999) %}{% set x = ('a' * 10**5).find('b') %}{% endfor %}",
    "{% for i in range(99999) %}{% if ('a' * 10**5) == ('a' * 10**5) %}{% endif %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = 'b' in ('a' * 10**5) %}{% endfor %}",
    "{{ range(99999) | sort | unique | list }}",
    "{{ range(99999) | map('string') | map('length') | sum }}{{ range(99999) | map('map', 'map') | list }}",
    "{{ messages | map('map', 'map', 'map', 'map', 'string') | list }}",
    "{% set d = {} %}{% for i in range(99999) %}{% set d = dict(d, a=i) %}{% endfor %}",
    "{{ dict(range(99999) | batch(1) | map('batch', 1)) }}",
    "{% for c in 'a' * 10**8 %}{% endfor %}",
    "{{ ('a ' * 10**7).split() | length }}",
    "{{ ('a' * 10**8).split('a') | length }}",
    "{% for i in range(999) %}{% set x = ('a' * 10**8) %}{% endfor %}",
    "{{ (' ' * 10**7).strip(' ' * 10**5 + 'a') }}",
    "{{ ('a' * 10**8) | upper | lower | title | capitalize | trim | e | urlencode | wordcount }}",
];

#[test]
fn template_bombs_end_early() {
    for bomb in BOMBS {
        let _ = defuse(bomb);
    }
    for bomb in &BOMBS[..10] {
        let error = defuse(bomb).unwrap_err();
        assert!(matches!(error, TemplateError::Stopped { .. }), "{bomb}: {error}");
    }
}

#[test]
fn sources_that_nest_are_refused_and_long_ones_are_read() {
    let deep = |open: &str, middle: &str, close: &str| open.repeat(60_000) + middle + &close.repeat(60_000);
    for source in [
        deep("{{ (", "1", ") }}"),
        format!("{{{{ {} }}}}", deep("(", "1", ")")),
        format!("{{{{ {} }}}}", deep("[", "1", "]")),
        format!("{{{{ {} }}}}", deep("{1:", "1", "}")),
        format!("{{{{ {} }}}}", deep("f(", "1", ")")),
        format!("{{{{ {} }}}}", deep("x[", "1", "]")),
        format!("{{{{ {} }}}}", deep("not ", "1", "")),
        format!("{{{{ {} }}}}", deep("-", "1", "")),
        format!("{{{{ {} }}}}", deep("1 if 1 else ", "1", "")),
        format!("{{{{ {} }}}}", deep("x is in x is ", "in x", "")),
        deep("{% if 1 %}", "", "{% endif %}"),
        deep("{% for x in y %}", "", "{% endfor %}"),
        deep("{% macro m() %}", "", "{% endmacro %}"),
        deep("{% set x %}", "", "{% endset %}"),
        deep("{% raw %}", "", "{% endraw %}"),
        format!("{{% set {} = 1 %}}", deep("(", "x", ")")),
    ] {
        assert!(defuse(&source).is_err(), "{}", &source[..40]);
    }
    // Long is not deep.
    for (source, rendered) in [
        (format!("{{{{ {}1 }}}}", "1 + ".repeat(50_000)), "50001".to_owned()),
        (format!("{{{{ 'a'{} }}}}", "|upper".repeat(50_000)), "A".to_owned()),
        (format!("{{{{ 'a'{} }}}}", " ~ 'b'".repeat(1000)), "a".to_owned() + &"b".repeat(1000)),
        (format!("{{{{ 'a' {} }}}}", "'b'".repeat(200_000)), "a".to_owned() + &"b".repeat(200_000)),
        (format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(50_000)), String::new()),
        (format!("{{{{ x{} }}}}", " or x".repeat(50_000)), String::new()),
    ] {
        assert_eq!(defuse(&source).unwrap(), rendered);
    }
    let unclosed =
        ["{% ", "{{ ", "{# ", "{% raw %}", "{% raw %}{%", "{{ '", "{%-", "{%- raw", "{{-}}", "{{ \"\\"];
    for piece in unclosed {
        let _ = defuse(piece);
        let _ = defuse(&piece.repeat(100_000));
    }
}

/// What was tried on other renderers of templates: none of it finds anything but the conversation.
#[test]
fn templates_reach_nothing_outside() {
    for source in [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
        "{{ lipsum.__globals__['os'] }}",
        "{{ request.application.__globals__ }}",
        "{{ open('/etc/passwd').read() }}",
    ] {
        assert!(defuse(source).is_err(), "{source}");
    }
    assert_eq!(defuse("{{ ''.__class__ }}{{ messages.__init__ }}{{ self }}").unwrap(), "");
}

#[test]
fn a_long_conversation_renders() {
    let source = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\
        <{{ m.role | upper }}>{{ m['content'] | trim }}{% if not loop.last %}\n{% endif %}{% endfor %}{{ ns.n }}";
    let words = "word ".repeat(500);
    let messages = (0..4000).map(|_| Data::message("user", &words)).collect();
    let template = ChatTemplate::from_text(source).unwrap();
    assert!(template.render(&Conversation::new(messages)).unwrap().len() > 4000 * 2499);
}

fn golden(model: &str) -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/models").join(model);
    let file = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let (config, map) = (file("tokenizer_config.json"), file("special_tokens_map.json"));
    Tokenizer::from_bytes(&file("tokenizer.json"), Some(&config), Some(&map)).unwrap()
}

/// Texts of `bytes` that make splitters, mergers and normalizers work.
fn adversarial(bytes: usize) -> Vec<(String, String)> {
    let units = [
        "a",
        " ",
        "\n",
        "\r\n",
        "a ",
        "1234567890",
        "\u{301}",
        "\u{301}\u{316}",
        "a\u{316}\u{301}\u{301}\u{316}",
        "\u{1100}\u{1161}",
        "a'",
        "'s",
        "!?",
        "\t ",
        "\n ",
        " \n",
        "the quick brown fox ",
        "A",
        "Aa",
        "aA",
        "ab",
        "<|im_end|>",
        "<s>",
        "<|endoftext|>",
        "<|im_end",
        "<",
        "👩‍👩‍👧",
        "\u{2581}",
        "ﷺ",
        "\0",
        "日本",
        "/\r\n",
    ];
    let mut texts: Vec<(String, String)> =
        units.iter().map(|unit| (format!("{unit:?}"), unit.repeat(bytes / unit.len()))).collect();
    texts.push(("spaces before x".to_owned(), " ".repeat(bytes - 1) + "x"));
    texts.push(("tabs before a line".to_owned(), "\t".repeat(bytes - 1) + "\n"));
    for (from, to) in [(33, 126), (97, 122), (0x80, 0x2FFFF), (0x4E00, 0x9FFF), (0, 32)] {
        let (mut seed, mut text) = (1u64, String::new());
        while text.len() < bytes {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.extend(char::from_u32(from + (seed >> 33) as u32 % (to - from)));
        }
        texts.push((format!("random {from}..{to}"), text));
    }
    texts
}

/// A megabyte takes about a second. What is asserted is that four times the text is far from sixteen times the time;
/// `BANTAM_SHOW=1` prints the figures.
#[test]
fn tokenizing_adversarial_text_is_linear() {
    let bytes = if std::env::var_os("BANTAM_SHOW").is_some() { 1 << 20 } else { 1 << 17 };
    for model in ["gemma2", "gpt_neox", "gpt_oss-bf16", "llama-tied", "llama-untied", "qwen2"] {
        let tokenizer = golden(model);
        let time = |text: &str| {
            let begin = Instant::now();
            let count = tokenizer.encode(text, false).unwrap().len();
            (begin.elapsed().as_secs_f64(), count)
        };
        for ((name, small), (_, large)) in adversarial(bytes / 4).into_iter().zip(adversarial(bytes)) {
            let (few, _) = time(&small);
            let (many, count) = time(&large);
            if std::env::var_os("BANTAM_SHOW").is_some() {
                println!("{model} {name}: {few:.3} s, {many:.3} s for {bytes} bytes, {count} tokens");
            }
            assert!(many < 12.0 * few + 2.0, "{model} {name}: {few} s, four times the text {many} s");
        }
    }
}

/// Where the library's search gives up, it says nothing and the rest is one piece: a long run must end as a short
/// one does.
#[test]
fn long_runs_are_split_as_short_ones() {
    // More than a million searches, which is where the library gives up; and a multiple of 24, the longest run that
    // is a token of its own.
    let more = 24 << 16;
    for model in ["gpt_neox", "gpt_oss-bf16", "llama-tied"] {
        let tokenizer = golden(model);
        for unit in [" ", "\n", "\t", "a", "1", "'s"] {
            let tail = |bytes: usize| {
                let text = "x".to_owned() + &unit.repeat(bytes / unit.len()) + " z\n12!";
                let ids = tokenizer.encode(&text, false).unwrap();
                ids[ids.len() - 4..].to_vec()
            };
            assert_eq!(tail(2048), tail(2048 + more), "{model} {unit:?}");
        }
    }
}

/// A tokenizer of a few characters with this part set.
fn tokenizer(part: &str, value: Value) -> Result<Tokenizer, String> {
    let mut file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "!": 2}, "merges": []}});
    file[part] = value;
    Tokenizer::from_bytes(&serde_json::to_vec(&file).unwrap(), None, None).map_err(|error| error.to_string())
}

#[test]
fn patterns_that_backtrack_are_errors_and_not_wrong_pieces() {
    let text = "a".repeat(200_000) + "!";
    let split = |pattern: &str| {
        let pattern = json!({"Regex": pattern});
        json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
    };
    for pattern in ["(a+)+$", "(a|a)*$", "(a*)*b", "(.*a){30}"] {
        // These run in linear time however they look.
        assert!(
            tokenizer("pre_tokenizer", split(pattern)).unwrap().encode(&text, false).is_ok(),
            "{pattern}"
        );
    }
    for pattern in [r"(a+)+\1$", r"(a|aa)+\1$", "(?=(a+)+$)b", r"(?<=(a+)+)!b"] {
        // What the library refuses to build is refused as well.
        let Ok(tokenizer) = tokenizer("pre_tokenizer", split(pattern)) else { continue };
        let result = tokenizer.encode(&text, false).map(|ids| ids.len());
        let error = result.expect_err(pattern).to_string();
        assert!(error.contains("pattern") && error.contains("on this text"), "{pattern}: {error}");
    }
    let replace = json!({"type": "Replace", "pattern": {"Regex": r"(a+)+\1$"}, "content": "b"});
    assert!(
        tokenizer("normalizer", replace).unwrap().encode(&text, false).is_err(),
        "a normalizer's pattern"
    );
    for pattern in ["(", "a{1000000}{1000000}", "(?:a{1000}){1000}{1000}"] {
        assert!(tokenizer("pre_tokenizer", split(pattern)).is_err(), "{pattern}");
    }
}

#[test]
fn replacements_that_multiply_are_refused() {
    let grow = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(1000)});
    let parts = json!({"type": "Sequence", "normalizers": [grow, grow, grow, grow]});
    let tokenizer = tokenizer("normalizer", parts).unwrap();
    let error = tokenizer.encode("aaa", false).unwrap_err().to_string();
    assert!(error.contains("times as long"), "{error}");
}
