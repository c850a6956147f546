package main

import (
	"strings"
	"testing"
)

func TestRebuiltBodyIsLessWhatTheImageGives(t *testing.T) {
	t.Parallel()
	const image = `{"Config":{"Env":["PATH=/bin","A=1"],"Cmd":["run"],"Entrypoint":["/init"],"User":"nobody","WorkingDir":"/srv","Labels":{"x":"y","e":""},
		"ExposedPorts":{"80/tcp":{}},"Volumes":{"/data":{}},"StopSignal":"SIGINT","Healthcheck":{"Test":["CMD","true"],"Interval":7}}}`
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for name, c := range map[string]struct{ config, host, networks, image, want string }{
		"nothing of its own": {
			config: `{"Hostname":"0123456789ab","Env":["PATH=/bin","A=1"],"Cmd":["run"],"Entrypoint":["/init"],"User":"nobody","WorkingDir":"/srv","Image":"i","OnBuild":null,
				"Labels":{"x":"y","e":""},"ExposedPorts":{"80/tcp":{}},"Volumes":{"/data":{}},"StopSignal":"SIGINT","Healthcheck":{"Interval":7,"Test":["CMD","true"]}}`,
			want: `{"Image":"i","Labels":{},"ExposedPorts":{},"Volumes":{},"Env":[],"HostConfig":{"NetworkMode":"default"}}`,
		},
		"values of its own": {
			config: `{"Hostname":"web","Env":["PATH=/bin","A=2","B="],"Cmd":["other"],"Entrypoint":["/init"],"User":"root","Image":"i","Labels":{"x":"z","e":"","own":""},"ExposedPorts":{"80/tcp":{},"81/tcp":{}},"Volumes":null}`,
			host:   `{"NetworkMode":"default","ContainerIDFile":"/tmp/id","Links":["/db:/web/database"],"Memory":5,"Binds":null}`,
			want: `{"Hostname":"web","Cmd":["other"],"User":"root","Image":"i","Labels":{"x":"z","own":""},"ExposedPorts":{"81/tcp":{}},"Env":["A=2","B="],
				"HostConfig":{"NetworkMode":"default","Memory":5,"Links":["db:database"]}}`,
		},
		"an entrypoint takes the image's command away": {
			config: `{"Cmd":null,"Entrypoint":["/init"],"Image":"i"}`,
			want:   `{"Entrypoint":["/init"],"Image":"i","HostConfig":{"NetworkMode":"default"}}`,
		},
		"the image is not there any more": {
			config: `{"Cmd":["run"],"Env":["PATH=/bin"],"Image":"i"}`, image: "none",
			want: `{"Cmd":["run"],"Image":"i","Env":["PATH=/bin"],"HostConfig":{"NetworkMode":"default"}}`,
		},
		"the host's network": {
			config: `{"Hostname":"node-1","Image":"i"}`, host: `{"NetworkMode":"host"}`, networks: `{"host":{"IPAMConfig":null,"Aliases":null}}`,
			want: `{"Image":"i","HostConfig":{"NetworkMode":"host"}}`,
		},
		"the first network, as it was asked for": {
			config: `{"Image":"i"}`, host: `{"NetworkMode":"net"}`,
			networks: `{"net":{"IPAMConfig":{"IPv4Address":"10.9.0.9"},"Aliases":["al","0123456789ab"],"IPAddress":"10.9.0.9","MacAddress":"02:42"},"more":{"Aliases":["b"]}}`,
			want: `{"Image":"i","HostConfig":{"NetworkMode":"net"},
				"NetworkingConfig":{"EndpointsConfig":{"net":{"IPAMConfig":{"IPv4Address":"10.9.0.9"},"Aliases":["al"]}}}}`,
		},
		"a swarm's network: the address there is the swarm's to give": {
			config: `{"Image":"i"}`, host: `{"NetworkMode":"over"}`,
			networks: `{"over":{"NetworkID":"uk3qyxcj7mzmbd6fv3crs4zmx","IPAMConfig":{"IPv4Address":"10.0.1.5"},"Aliases":["al"],"IPAddress":"10.0.1.5"}}`,
			want: `{"Image":"i","HostConfig":{"NetworkMode":"over"},
				"NetworkingConfig":{"EndpointsConfig":{"over":{"Aliases":["al"]}}}}`,
		},
	} {
		if c.host == "" {
			c.host = `{"NetworkMode":"default"}`
		}
		if c.networks == "" {
			c.networks = "{}"
		}
		var im []byte
		if c.image == "" {
			im = []byte(image)
		}
		got, err := rebuildBody([]byte(`{"Id":"`+id+`","Config":`+c.config+`,"HostConfig":`+c.host+`,"NetworkSettings":{"Networks":`+c.networks+`}}`), im)
		want := strings.NewReplacer("\n", "", "\t", "").Replace(c.want)
		if err != nil || string(got) != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, got, want)
		}
	}
	for _, bad := range []string{"", "[]", `{"Config":[]}`, `{"Config":{"a"`} {
		if got, err := rebuildBody([]byte(bad), nil); err == nil {
			t.Errorf("rebuildBody(%s) = %s, want an error", bad, got)
		}
	}
}
