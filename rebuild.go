package main

import (
	"encoding/json"
	"slices"
	"strings"
)

// rebuildBody makes a create body of a container's inspect, less what its image
// gives by itself: made from it elsewhere the container is the same, and follows its
// image as the first did. image is the image's inspect, nil if it is not there any
// more. Only the first network is in the body, as older engines allow no more.
func rebuildBody(container, image []byte) (body []byte, err error) {
	var in struct {
		Id         string
		Config     json.RawMessage
		HostConfig json.RawMessage
	}
	if err := json.Unmarshal(container, &in); err != nil {
		return nil, err
	}
	config, err := parseObject(in.Config)
	if err != nil {
		return nil, err
	}
	host, err := parseObject(in.HostConfig)
	if err != nil {
		return nil, err
	}
	var given struct{ Config json.RawMessage }
	if image != nil {
		if err := json.Unmarshal(image, &given); err != nil {
			return nil, err
		}
	}
	defaults, err := parseObject(given.Config)
	if err != nil {
		return nil, err
	}
	config = config.lessImage(defaults)
	var named struct{ Hostname, Domainname string }
	json.Unmarshal(in.Config, &named) // of an odd shape: kept as it is
	mode := stringOf(host.get("NetworkMode"))
	if len(named.Hostname) >= 12 && strings.HasPrefix(in.Id, named.Hostname) || mode == "host" || strings.HasPrefix(mode, "container:") {
		config = config.without("Hostname").without("Domainname")
	}
	for _, key := range []string{"OnBuild", "ArgsEscaped"} { // never a create's
		config = config.without(key)
	}
	config = config.withoutNulls()
	host = host.without("ContainerIDFile").withoutNulls()
	if links := shortLinks(host.get("Links")); links != nil {
		host = host.with("Links", links)
	}
	config = append(config, member{key: "HostConfig", value: host.bytes()})
	list, err := attachments(container, in.Id)
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		if a.network == mode && !slices.Contains(predefinedNetworks, mode) && string(a.settings) != "{}" {
			endpoints := object{{key: mode, value: a.settings}}
			config = config.with("NetworkingConfig", map[string]json.RawMessage{"EndpointsConfig": endpoints.bytes()})
		}
	}
	return config.bytes(), nil
}

// lessImage takes out of a container's Config what its image gives: whole values that
// are equal, and the parts of lists and maps that are.
func (o object) lessImage(image object) object {
	same := func(key string) bool {
		return sameJSON(o.get(key), image.get(key))
	}
	// An engine takes the image's command only with the image's entrypoint.
	if same("Entrypoint") && (same("Cmd") || !empty(o.get("Cmd"))) {
		o = o.without("Entrypoint")
		if same("Cmd") {
			o = o.without("Cmd")
		}
	}
	for _, key := range []string{"User", "WorkingDir", "Healthcheck", "StopSignal", "Shell", "StopTimeout"} {
		if same(key) {
			o = o.without(key)
		}
	}
	var env, imageEnv []string
	json.Unmarshal(o.get("Env"), &env)
	json.Unmarshal(image.get("Env"), &imageEnv)
	o = o.with("Env", slices.DeleteFunc(env, func(v string) bool { return slices.Contains(imageEnv, v) }))
	for _, key := range []string{"Labels", "ExposedPorts", "Volumes"} {
		own, err := parseObject(o.get(key))
		theirs, errImage := parseObject(image.get(key))
		if err != nil || errImage != nil || len(own) == 0 {
			continue
		}
		own = slices.DeleteFunc(own, func(m member) bool { v := theirs.get(m.key); return v != nil && sameJSON(m.value, v) })
		o = o.replace(key, own.bytes())
	}
	return o
}

// withoutNulls drops keys that say nothing.
func (o object) withoutNulls() object {
	return slices.DeleteFunc(o, func(m member) bool { return string(m.value) == "null" })
}

// sameJSON tells whether two values are written the same; nothing is the same as null.
func sameJSON(a, b json.RawMessage) bool {
	if empty(a) || empty(b) {
		return empty(a) && empty(b)
	}
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	return jsonText(x) == jsonText(y)
}

// empty tells whether a value says nothing.
func empty(v json.RawMessage) bool {
	return len(v) == 0 || slices.Contains([]string{"null", `""`, "[]"}, string(v))
}

// stringOf is a JSON string, "" for what is none.
func stringOf(v json.RawMessage) (s string) {
	json.Unmarshal(v, &s)
	return s
}

// shortLinks writes links as a create has them, db:alias; an inspect says /db:/web/alias.
func shortLinks(raw json.RawMessage) (links []string) {
	json.Unmarshal(raw, &links)
	for i, link := range links {
		from, to, _ := strings.Cut(strings.TrimPrefix(link, "/"), ":")
		links[i] = from + ":" + to[strings.LastIndexByte(to, '/')+1:]
	}
	return links
}
