use super::*;

fn window(example: usize, tokens: usize) -> Window {
    Window { example, ids: vec![0; tokens], from: 1 }
}

#[test]
fn batches_hold_what_fits_and_at_least_one() {
    let windows =
        Windows { windows: [5, 3, 20, 1, 2].map(|tokens| window(0, tokens)).to_vec(), notes: vec![] };
    let sizes: Vec<Vec<usize>> =
        windows.batches(8).map(|batch| batch.iter().map(|w| w.ids.len()).collect()).collect();
    assert_eq!(sizes, [vec![5, 3], vec![20], vec![1, 2]]);
    assert_eq!(windows.rows(), 31);
}

#[test]
fn a_dataset_is_cut_where_it_no_longer_fits() {
    let windows = vec![window(0, 5), window(1, 3), window(1, 2), window(2, 1), window(2, 1), window(3, 1)];
    let notes = vec![Note { example: 2, line: 30, what: Noted::Straddles }];
    let mut windows = Windows { windows, notes };
    let examples = [10, 20, 30, 40].map(|line| Example { line, text: String::new(), completion: None });
    windows.truncate(9, &examples);
    assert_eq!(windows.rows(), 8);
    let noted =
        |windows: &Windows| windows.notes.iter().map(|note| (note.line, note.what)).collect::<Vec<_>>();
    let beyond = Noted::BeyondMaxTokens;
    assert_eq!(noted(&windows), [(20, Noted::CutByMaxTokens), (30, beyond), (40, beyond)]);
    windows.truncate(4, &examples);
    assert_eq!(windows.rows(), 0);
    assert_eq!(noted(&windows), [(10, beyond), (20, beyond), (30, beyond), (40, beyond)]);
}

/// The rule of the Language Model Evaluation Harness, where it is one: where the tokens of the context are a beginning of all.
fn rule(tokenizer: &Tokenizer, text: &str, completion: &str) -> Option<usize> {
    let context = tokenizer.encode(text.trim_end()).unwrap();
    let all = tokenizer.encode(&format!("{text}{completion}")).unwrap();
    all.starts_with(&context).then_some(context.len())
}

#[test]
fn completions_begin_where_their_tokens_do() {
    let whole = "El administrador  debe:\n\tcomprobar 25 cafés\u{a0}o 日本 en la red.";
    for model in ["gpt2-tiny", "llama-tiny"] {
        let tokenizer = open(&fixtures(model));
        let (mut followed, mut straddling) = (0, 0);
        // What begins with the first token is another matter.
        for (cut, _) in whole.char_indices().skip(3) {
            let (text, completion) = whole.split_at(cut);
            let windows = of(&tokenizer, text, completion);
            let window = &windows.windows[0];
            assert_eq!(window.ids, tokenizer.encode(whole).unwrap());
            let straddles = windows.notes.iter().any(|note| note.what == Noted::Straddles);
            straddling += usize::from(straddles);
            match rule(&tokenizer, text, completion) {
                Some(from) => {
                    followed += 1;
                    assert_eq!((window.from, straddles), (from, false), "{model}: {text:?}, {completion:?}");
                }
                // Its first token has something of the text.
                None => {
                    let before = tokenizer.encode_with_spans(whole).unwrap()[window.from].1.start;
                    assert!(straddles && before < text.trim_end().len(), "{model}: {text:?}, {completion:?}");
                }
            }
        }
        assert!(followed > 10 && straddling > 1, "{model}: {followed}, {straddling}");
    }
}

#[test]
fn tokens_of_the_template_are_none_of_the_completion() {
    // A tokenizer that ends each text with a token of its own.
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(fixtures("llama-tiny").join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let end = serde_json::json!({ "SpecialToken": { "id": "</s>", "type_id": 0 } });
    let template = &mut json["post_processor"];
    template["single"].as_array_mut().unwrap().push(end);
    template["special_tokens"]["</s>"] = serde_json::json!({ "id": "</s>", "ids": [2], "tokens": ["</s>"] });
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let (plain, ending) = (open(&fixtures("llama-tiny")), open(folder.path()));
    let (expected, found) = (of(&plain, "El sistema", " es"), of(&ending, "El sistema", " es"));
    assert_eq!(ending.encode("El sistema es").unwrap().last(), Some(&2));
    assert_eq!(found.windows, expected.windows);
    assert_eq!(of(&ending, "El sistema", "").notes[0].what, Noted::NoCompletion);
}

#[test]
fn no_example_is_left_out_without_a_word() {
    let (gpt2, llama) = (open(&fixtures("gpt2-tiny")), open(&fixtures("llama-tiny")));
    for (tokenizer, text, completion, what, windows) in [
        (&gpt2, "", None, Some(Noted::NoTokens), 0),
        (&gpt2, "Debian es", None, None, 1),
        (&gpt2, ".", None, Some(Noted::OneToken), 0),
        // There is one at the beginning.
        (&llama, "", None, Some(Noted::OneToken), 0),
        (&gpt2, "El sistema", Some(""), Some(Noted::NoCompletion), 0),
        (&gpt2, "El sistema ", Some(""), Some(Noted::NoCompletion), 0),
        (&gpt2, "", Some("."), Some(Noted::NoContext), 0),
        (&gpt2, " ", Some("."), Some(Noted::NoContext), 0),
        (&llama, "", Some("n"), None, 1),
        (&gpt2, "", Some("El sistema"), Some(Noted::FirstNotCounted), 1),
        (&gpt2, "Debian is a free", Some("dom"), Some(Noted::Straddles), 1),
        (&gpt2, "El ", Some("sistema"), None, 1),
    ] {
        let example = Example { line: 7, text: text.into(), completion: completion.map(str::to_owned) };
        let found = Windows::of(&[example], tokenizer, 256).unwrap();
        let noted: Vec<Noted> = found.notes.iter().map(|note| note.what).collect();
        assert_eq!(noted, Vec::from_iter(what), "{text:?}, {completion:?}");
        assert_eq!(found.windows.len(), windows, "{text:?}, {completion:?}");
        assert_eq!(what.is_some_and(Noted::is_left_out), windows == 0);
    }
    // Left over after two windows of as many tokens as there are but one.
    let text = "El sistema de ficheros".to_owned();
    let tokens = gpt2.encode(&text).unwrap().len();
    let example = Example { line: 7, text, completion: None };
    for (positions, expected) in
        [(tokens - 1, Some(Noted::LastNotCounted)), (tokens, None), (tokens - 2, None)]
    {
        let found = Windows::of(std::slice::from_ref(&example), &gpt2, positions).unwrap();
        let noted: Vec<Noted> = found.notes.iter().map(|note| note.what).collect();
        assert_eq!(noted, Vec::from_iter(expected), "{positions} of {tokens}");
        assert_eq!(found.rows(), tokens - expected.into_iter().count());
    }
    let long = Example { line: 7, text: "de ".repeat(300), completion: Some("la".into()) };
    let refused = Windows::of(&[long], &gpt2, 256).unwrap_err().to_string();
    assert!(refused.starts_with("line 7 of the dataset has"), "{refused}");
}

#[test]
fn what_is_said_of_lines_that_follow_one_another_is_said_once() {
    let note = |example, line, what| Note { example, line, what };
    let windows = Windows {
        windows: vec![],
        notes: vec![
            note(1, 2, Noted::NoTokens),
            note(4, 6, Noted::BeyondMaxTokens),
            note(5, 9, Noted::BeyondMaxTokens),
        ],
    };
    let said: Vec<String> = windows.noted_lines().iter().map(NotedLines::to_string).collect();
    assert_eq!(
        said,
        [
            "line 2: left out: it has no tokens",
            "2 lines from 6 to 9, each: left out: --max-tokens ends before it"
        ]
    );
}

fn of(tokenizer: &Tokenizer, text: &str, completion: &str) -> Windows {
    let example = Example { line: 1, text: text.into(), completion: Some(completion.into()) };
    Windows::of(&[example], tokenizer, 256).unwrap()
}

fn open(folder: &std::path::Path) -> Tokenizer {
    Tokenizer::open(folder).unwrap()
}

fn fixtures(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

#[test]
fn a_token_is_found_in_its_example() {
    let windows = Windows { windows: vec![window(0, 5), window(2, 4), window(2, 3)], notes: vec![] };
    let found = [0, 4, 5, 8, 9, 11, 12].map(|token| windows.find(token));
    let expected = [(0, 0), (0, 4), (2, 0), (2, 3), (2, 4), (2, 6)].map(Some);
    assert_eq!((&found[..6], found[6]), (&expected[..], None));
}

#[test]
fn the_mean_is_over_tokens_and_lies_in_its_interval() {
    let totals: Vec<Total> =
        (1..=40).map(|i| Total { loss: i as f64 * 2.0 + (i % 3) as f64, tokens: i }).collect();
    let estimate = mean(&totals);
    let expected =
        totals.iter().map(|t| t.loss).sum::<f64>() / totals.iter().map(|t| t.tokens).sum::<usize>() as f64;
    assert!((estimate.value - expected).abs() < 1e-12);
    assert!(estimate.interval[0] < estimate.value && estimate.value < estimate.interval[1]);
    assert_eq!(estimate, mean(&totals));
    // About 1.96 standard errors to either side.
    let n = totals.len() as f64;
    let tokens = totals.iter().map(|t| t.tokens as f64).sum::<f64>() / n;
    let residuals = totals.iter().map(|t| (t.loss - expected * t.tokens as f64).powi(2)).sum::<f64>();
    let error = (residuals / (n - 1.0) / n).sqrt() / tokens;
    let width = (estimate.interval[1] - estimate.interval[0]) / (2.0 * 1.96 * error);
    assert!((0.8..1.2).contains(&width), "{width}");
}

#[test]
fn a_difference_is_paired() {
    let first: Vec<Total> = (1..=20).map(|i| Total { loss: (i * i) as f64, tokens: i }).collect();
    let second: Vec<Total> =
        first.iter().map(|t| Total { loss: t.loss - 0.5 * t.tokens as f64, tokens: t.tokens }).collect();
    let estimate = difference(&first, &second);
    for value in [estimate.value, estimate.interval[0], estimate.interval[1]] {
        assert!((value + 0.5).abs() < 1e-9, "{estimate:?}");
    }
}

#[test]
fn one_example_has_no_interval_and_skipped_ones_do_not_count() {
    let one = mean(&[Total { loss: 6.0, tokens: 2 }, Total::default()]);
    assert_eq!(one, Estimate { value: 3.0, interval: [3.0, 3.0] });
}
