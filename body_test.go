package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestObjectKeepsWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, in, want string }{
		{"order and bytes", `{"b":1,"a":[1, 2],"c":{ "x" : null }}`, `{"b":1,"a":[1, 2],"c":{ "x" : null }}`},
		{"big numbers", `{"a":18446744073709551616,"b":1e400,"c":0.1000000000000000055511151231257827,"d":-0}`, `{"a":18446744073709551616,"b":1e400,"c":0.1000000000000000055511151231257827,"d":-0}`},
		{"spelling of strings", `{"a":"\u0041\/\ud83d\ude00 é <&>"}`, `{"a":"\u0041\/\ud83d\ude00 é <&>"}`},
		{"spelling of keys", `{"\u0041b<&>é":1,"a\/b":2}`, `{"\u0041b<&>é":1,"a\/b":2}`},
		{"doubles", `{"a":1,"A":2,"a":3}`, `{"a":1,"A":2,"a":3}`},
		{"an empty key", `{"":1}`, `{"":1}`},
		{"blanks between members", " {\n\t\"a\" : 1 ,\r\n \"b\":2 } ", `{"a":1,"b":2}`},
		{"brackets and quotes in strings", `{"a":"}],\"{[","b":"\\"}`, `{"a":"}],\"{[","b":"\\"}`},
		{"nothing", ``, `{}`}, {"blanks", " \n", `{}`}, {"null", ` null `, `{}`}, {"empty", `{ }`, `{}`},
	} {
		o, err := parseObject([]byte(tt.in))
		if err != nil || string(o.bytes()) != tt.want {
			t.Errorf("%s: parseObject(%s) = %s, %v, want %s", tt.name, tt.in, o.bytes(), err, tt.want)
		}
	}
	for _, in := range []string{`[]`, `7`, `"a"`, `true`, `nul`, `{`, `{"a"`, `{"a":`, `{"a":}`, `{"a":1`, `{"a":1,`, `{"a":1,}`, `{,}`, `{a:1}`, `{"a":1 "b":2}`, `{"a" 1}`, `{"a":[}`, `{"a":"`, `{"a":tru}`, `{"a":1 2}`} {
		if o, err := parseObject([]byte(in)); err == nil {
			t.Errorf("parseObject(%s) = %s, want an error", in, o.bytes())
		}
	}
}

// TestObjectCutsEverySpellingOfOurs: an engine folds the case of keys and lets the
// last of doubles win, so every spelling has to go before ours is appended.
func TestObjectCutsEverySpellingOfOurs(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		`{"Env":["a"],"x":1}`, `{"env":["a"],"x":1}`, `{"ENV":["a"],"x":1}`, `{"eNv":["a"],"x":1}`, `{"Env":["a"],"x":1,"env":["b"],"ENV":null}`,
		`{"\u0045nv":["a"],"x":1,"E\u006ev":["b"]}`, `{"x":1}`, `{"x":1,"Env":{"of":"another type"}}`,
	} {
		o, err := parseObject([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(o.without("Env").bytes()); got != `{"x":1}` {
			t.Errorf("%s without Env = %s", in, got)
		}
		got := string(o.with("Env", []string{"ours"}).bytes())
		if got != `{"x":1,"Env":["ours"]}` {
			t.Errorf("%s with Env = %s", in, got)
		}
	}
	// Letters beyond ASCII fold as well: ſ is an s, K is a k.
	o, err := parseObject([]byte("{\"Label\u017f\":{\"a\":\"b\"},\"x\":1}"))
	if err != nil {
		t.Fatal(err)
	}
	var read createBody
	if err := json.Unmarshal(o.bytes(), &read); err != nil || read.Labels["a"] != "b" {
		t.Errorf("an engine does not read Labelſ as Labels: %v, %v", read.Labels, err)
	}
	if got := string(o.without("Labels").bytes()); got != `{"x":1}` {
		t.Errorf("without Labels = %s", got)
	}
}

func TestObjectReplacesInPlace(t *testing.T) {
	t.Parallel()
	o, err := parseObject([]byte(`{"a":1,"Ports":[],"b":2}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(o.replace("Ports", []byte("[1]")).replace("c", []byte("3")).bytes()); got != `{"a":1,"Ports":[1],"b":2,"c":3}` {
		t.Errorf("replace = %s", got)
	}
	if got := string(o.get("Ports")) + string(o.get("ports")) + string(o.get("none")); got != "[1]" {
		t.Errorf("get = %s", got)
	}
	for path, want := range map[string]string{"a": `{"b":{"c":1,"d":2}}`, "b.c": `{"a":1,"b":{"d":2}}`, "b.x": `{"a":1,"b":{"c":1,"d":2}}`, "x.c": `{"a":1,"b":{"c":1,"d":2}}`, "a.c": `{"a":1,"b":{"c":1,"d":2}}`} {
		o, err := parseObject([]byte(`{"a":1,"b":{"c":1,"d":2}}`))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(o.withoutPath(path).bytes()); got != want {
			t.Errorf("without %s = %s, want %s", path, got, want)
		}
	}
}

func TestDecodeBodyReadsAsAnEngineDoes(t *testing.T) {
	t.Parallel()
	var body createBody
	err := decodeBody([]byte(`{"image":"a","IMAGE":"b","hostconfig":{"MEMORY":1,"memory":2,"privileged":true},"labels":{"a":"1"},"Labels":{"b":"2"},"New":{"x":1}}`), &body)
	if err != nil || body.Image != "b" || body.HostConfig.Memory != 2 || len(body.Labels) != 2 {
		t.Errorf("decodeBody = %+v, %v", body, err)
	}
	deep := func(n int) string { return `{"a":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + `}` }
	for _, tt := range []struct{ in, want string }{
		{``, "invalid JSON: got EOF while reading request body"},
		{`{"Image":7}`, "invalid JSON: json: cannot unmarshal number into Go struct field createBody.Image of type string"},
		{`{"Image":"a"} {}`, "unexpected content after JSON"},
		{`{"Image":"a"}x`, "unexpected content after JSON"},
		{`{`, "invalid JSON: unexpected EOF"},
		{deep(maxDepth + 1), "invalid JSON: nested deeper than 200"},
		{`{"a":"` + strings.Repeat("[", 1000) + `"}`, ""},
		{`{"a":"\"` + strings.Repeat("[", 1000) + `"}`, ""},
		{deep(maxDepth), ""},
		{` null `, ""},
	} {
		err := decodeBody([]byte(tt.in), &createBody{})
		if (err == nil) != (tt.want == "") || err != nil && (err.Error() != tt.want || statusOf(err) != http.StatusBadRequest) {
			t.Errorf("decodeBody(%.40s) = %v, want 400 %s", tt.in, err, tt.want)
		}
	}
}

func TestReadBodyIsBounded(t *testing.T) {
	t.Parallel()
	read := func(r io.Reader) error {
		_, err := readBody(httptest.NewRequest(http.MethodPost, "/", r))
		return err
	}
	if err := read(io.LimitReader(zeros{}, maxJSON)); err != nil {
		t.Errorf("16 MiB: %v", err)
	}
	if err := read(io.LimitReader(zeros{}, maxJSON+1)); statusOf(err) != http.StatusRequestEntityTooLarge || err.Error() != "request body is over 16 MiB" {
		t.Errorf("16 MiB and a byte = %v, want 413", err)
	}
	if err := read(io.MultiReader(strings.NewReader("{"), broken{})); statusOf(err) != http.StatusBadRequest {
		t.Errorf("a body that breaks off = %v, want 400", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("reset") }

// TestCreateBodyGoesOnAsItCame: of a create only our two keys are written anew.
func TestCreateBodyGoesOnAsItCame(t *testing.T) {
	t.Parallel()
	const in = `{"Hostname":"","env":["A=1","constraint:storage==ssd","B=<&>"],"NoOneHasHeardOf":{"n":18446744073709551616,"Env":["constraint:x==y"]},"Image":"busybox","LABELS":{"a":"b"},"HostConfig":{"Memory":0,"New":[1.0]},"Env":["C=3","affinity:container!=~web*","reschedule:on-node-failure"]}`
	w, out, err := readCreate([]byte(in), &call{})
	if err != nil {
		t.Fatal(err)
	}
	head := `{"Hostname":"","NoOneHasHeardOf":{"n":18446744073709551616,"Env":["constraint:x==y"]},"Image":"busybox","HostConfig":{"Memory":0,"New":[1.0]},`
	if !bytes.HasPrefix(out, []byte(head)) {
		t.Errorf("readCreate = %s\nwant it to begin %s", out, head)
	}
	var read struct {
		Env    []string
		Labels map[string]string
	}
	if err := json.Unmarshal(out, &read); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"a": "b", swarmIDLabel: w.swarmID, "com.docker.swarm.affinities": `["container!=~web*"]`, "com.docker.swarm.reschedule-policies": `["on-node-failure"]`}
	if !reflect.DeepEqual(read.Env, []string{"C=3"}) || !reflect.DeepEqual(read.Labels, want) {
		t.Errorf("Env %q, Labels %v, want what the last Env has without its expressions, and %v", read.Env, read.Labels, want)
	}
	if len(w.constraints) != 0 || len(w.affinities) != 1 {
		t.Errorf("constraints %v, affinities %v, want those of the Env that an engine reads", w.constraints, w.affinities)
	}
	// Without expressions Env is not touched, whatever it is spelt like.
	_, out, err = readCreate([]byte(`{"env":["A=1"],"Image":"busybox"}`), &call{})
	if err != nil || !bytes.HasPrefix(out, []byte(`{"env":["A=1"],"Image":"busybox","Labels":{`)) {
		t.Errorf("readCreate = %s, %v", out, err)
	}
}

func TestParseObjectRefusesWhatIsNoJSON(t *testing.T) {
	t.Parallel()
	for _, data := range []string{`{"a":01}`, `{"a":00}`, `{"a":-}`, `{"a":1x}`, `{"a":truE}`, `{"a":}`, `{"a":"x\"}`, `{"a":"x\`, `{"a":"x`, `{"a`, `{"a":["x\"]}`} {
		if o, err := parseObject([]byte(data)); err == nil {
			t.Errorf("parseObject(%s) = %s", data, o.bytes())
		}
	}
}

// FuzzObject takes any bytes apart and puts them together again. What is JSON must
// mean the same, keep the bytes of every value, and read as ours where ours were put.
func FuzzObject(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a":1,"A":[{"b":"}"}],"\u0061":null}`, ` { "Env" : ["x"] , "env":{} } `, `{"a":"\\\"","b":-0.5e+7}`, `null`, `{"a":1,}`, "{\"\xff\":\"\xfe\"}",
		`{"Label` + "\u017f" + `":1}`, `[{"a":1}]`, `{"a":[}`, `{"a":{"a":{"a":[[[]]]}}}`,
		`{"a":10,"b":0,"c":"\\","d":"x\"y\\","e":["\"]}","z"],"f":1e3,"\"":""}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := parseObject(data)
		if !json.Valid(data) {
			return
		}
		trimmed := bytes.TrimSpace(data)
		if isObject := trimmed[0] == '{' || string(trimmed) == "null"; isObject != (err == nil) {
			t.Fatalf("parseObject(%q) = %v", data, err)
		}
		if err != nil || string(trimmed) == "null" {
			return
		}
		out := o.bytes()
		var before, after any
		if json.Unmarshal(data, &before) == nil && (json.Unmarshal(out, &after) != nil || !reflect.DeepEqual(before, after)) {
			t.Fatalf("%q became %q", data, out)
		}
		again, err := parseObject(out)
		if err != nil || !bytes.Equal(again.bytes(), out) || len(again) != len(o) {
			t.Fatalf("%q became %q, then %q, %v", data, out, again.bytes(), err)
		}
		for i, m := range o {
			if !bytes.Equal(m.value, again[i].value) || !bytes.Contains(data, m.value) || !bytes.Contains(data, m.spelt) {
				t.Fatalf("value of %q is %q, was %q", m.key, again[i].value, m.value)
			}
		}
		var read struct{ Env []string }
		if err := json.Unmarshal(o.with("Env", []string{"ours"}).bytes(), &read); err != nil || len(read.Env) != 1 || read.Env[0] != "ours" {
			t.Fatalf("%q with our Env reads as %q, %v", data, read.Env, err)
		}
		var none struct{ Env json.RawMessage }
		if err := json.Unmarshal(o.without("Env").bytes(), &none); err != nil || none.Env != nil {
			t.Fatalf("%q without Env has %q, %v", data, none.Env, err)
		}
	})
}

func TestArrayIsCutIntoItsItems(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in   string
		want []string
	}{
		{`[]`, nil},
		{` [ ] `, nil},
		{`[{"a":[1,"]"]}, {"b":"\""} ,"x",1.5,null]`, []string{`{"a":[1,"]"]}`, `{"b":"\""}`, `"x"`, `1.5`, `null`}},
	} {
		items, err := arrayItems([]byte(c.in))
		var got []string
		for _, item := range items {
			got = append(got, string(item))
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("arrayItems(%s) = %q, %v, want %q", c.in, got, err, c.want)
		}
	}
	// An answer that was cut short, or is no list, must not look like a shorter list.
	for _, in := range []string{``, `null`, `{}`, `[`, `[{"a":1}`, `[{"a":1},`, `[{"a":1},]`, `[{"a":1} {"b":2}]`, `[,]`, `[{"a":"]`, `[]]`, `[{"a":1}] x`} {
		if items, err := arrayItems([]byte(in)); err == nil {
			t.Errorf("arrayItems(%s) = %q, want an error", in, items)
		}
	}
}
