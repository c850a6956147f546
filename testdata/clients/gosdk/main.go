// Gosdk is a program on Docker's Go SDK. It says what it got, step by step.
//
//	gosdk REGISTRY    with DOCKER_HOST set. REGISTRY/busybox can be pulled.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
)

func main() {
	c, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	p := &program{Client: c, ctx: ctx, image: os.Args[1] + "/busybox:latest"}
	for _, part := range []func(*program) error{(*program).system, (*program).images, (*program).containers,
		(*program).networksAndVolumes, (*program).events, (*program).errors} {
		if err := part(p); err != nil { // the other parts still tell something
			p.say("ENDED EARLY", err)
		}
	}
}

type program struct {
	*client.Client
	ctx   context.Context
	image string
}

func (p *program) say(what string, values ...any) {
	fmt.Printf("%s: %s", what, fmt.Sprintln(values...))
}

// refused tells the class and the words of an error that must have come.
func (p *program) refused(what string, err error) {
	class := "NOT REFUSED"
	for name, is := range map[string]func(error) bool{"not found": errdefs.IsNotFound, "conflict": errdefs.IsConflict, "bad": errdefs.IsInvalidArgument,
		"denied": errdefs.IsPermissionDenied, "unavailable": errdefs.IsUnavailable, "internal": errdefs.IsInternal} {
		if is(err) {
			class = name
		}
	}
	p.say(what, class, err)
}

func (p *program) system() error {
	ping, err := p.Ping(p.ctx)
	if err != nil {
		return err
	}
	p.say("ping", ping.APIVersion, ping.OSType, ping.Experimental, ping.BuilderVersion, ping.SwarmStatus)
	version, err := p.ServerVersion(p.ctx)
	if err != nil {
		return err
	}
	p.say("version", version.APIVersion, version.MinAPIVersion, version.Version, p.ClientVersion())
	info, err := p.Info(p.ctx)
	if err != nil {
		return err
	}
	p.say("info", info.OSType, info.Swarm.LocalNodeState, info.IndexServerAddress, info.Runtimes["runc"].Path)
	_, err = p.DiskUsage(p.ctx, types.DiskUsageOptions{})
	return err
}

func (p *program) images() error {
	_, err := p.ContainerCreate(p.ctx, &container.Config{Image: p.image}, nil, nil, nil, "")
	p.refused("create, image missing", err)
	progress, err := p.ImagePull(p.ctx, p.image, image.PullOptions{})
	if err := p.readAll("pull", progress, err, nil); err != nil {
		return err
	}
	inspected, err := p.ImageInspect(p.ctx, p.image)
	if err != nil {
		return err
	}
	p.say("image", inspected.Os, inspected.RootFS.Layers, slices.Contains(inspected.RepoTags, p.image))
	if err := p.ImageTag(p.ctx, p.image, "sdk:one"); err != nil {
		return err
	}
	list, err := p.ImageList(p.ctx, image.ListOptions{Filters: filters.NewArgs(filters.Arg("reference", "sdk"))})
	if err != nil {
		return err
	}
	p.say("images", len(list), list[0].RepoTags)
	var dockerfile bytes.Buffer
	writeTar(&dockerfile, "Dockerfile", "FROM "+p.image+"\nLABEL by=sdk\nRUN echo built >/word\n")
	built, err := p.ImageBuild(p.ctx, &dockerfile, build.ImageBuildOptions{Tags: []string{"sdk:built"}, Remove: true})
	if err := p.readAll("build", built.Body, err, nil); err != nil {
		return err
	}
	out, err := p.runToEnd("sdk:built", "cat", "/word")
	if err != nil {
		return err
	}
	p.say("run what was built", out)
	var saved bytes.Buffer
	tarred, err := p.ImageSave(p.ctx, []string{"sdk:one", "sdk:built"})
	if err := p.readAll("save", tarred, err, &saved); err != nil {
		return err
	}
	for _, name := range []string{"sdk:one", "sdk:built"} {
		gone, err := p.ImageRemove(p.ctx, name, image.RemoveOptions{})
		if err != nil {
			return err
		}
		p.say("remove", gone[0].Untagged)
	}
	loaded, err := p.ImageLoad(p.ctx, &saved)
	if err := p.readAll("load", loaded.Body, err, nil); err != nil {
		return err
	}
	history, err := p.ImageHistory(p.ctx, "sdk:built")
	p.say("history", len(history), history[len(history)-1].CreatedBy)
	return err
}

// readAll reads an answer to its end, into to unless that is nil.
func (p *program) readAll(what string, body io.ReadCloser, err error, to io.Writer) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer body.Close()
	if to != nil {
		_, err = io.Copy(to, body)
		return err
	}
	for decoder := json.NewDecoder(body); ; {
		var line struct{ Error, Status string }
		if err := decoder.Decode(&line); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if line.Error != "" {
			return fmt.Errorf("%s: %s", what, line.Error)
		}
		if what == "pull" && strings.HasPrefix(line.Status, "Status: ") {
			p.say(what, "is done")
		}
	}
}

func writeTar(to io.Writer, name, content string) {
	archive := tar.NewWriter(to)
	_ = archive.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}) // a buffer takes all
	_, _ = archive.Write([]byte(content))
	_ = archive.Close()
}

// runToEnd is a container from create to remove; it returns both its outputs.
func (p *program) runToEnd(image string, command ...string) ([2]string, error) {
	var out [2]string
	made, err := p.ContainerCreate(p.ctx, &container.Config{Image: image, Cmd: command}, &container.HostConfig{AutoRemove: true}, nil, nil, "")
	if err != nil {
		return out, err
	}
	attached, err := p.ContainerAttach(p.ctx, made.ID, container.AttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		return out, err
	}
	defer attached.Close()
	ended, failed := p.ContainerWait(p.ctx, made.ID, container.WaitConditionRemoved)
	if err := p.ContainerStart(p.ctx, made.ID, container.StartOptions{}); err != nil {
		return out, err
	}
	var stdout, stderr bytes.Buffer
	if _, err := stdcopy.StdCopy(&stdout, &stderr, attached.Reader); err != nil {
		return out, err
	}
	select {
	case end := <-ended:
		p.say("exit code", end.StatusCode)
	case err := <-failed:
		return out, err
	}
	return [2]string{stdout.String(), stderr.String()}, nil
}

func (p *program) containers() error {
	out, err := p.runToEnd(p.image, "sh", "-c", "echo out; echo err >&2; exit 9")
	if err != nil {
		return err
	}
	p.say("run", out)
	made, err := p.ContainerCreate(p.ctx, &container.Config{Image: p.image, Cmd: []string{"sleep", "1000"}, Labels: map[string]string{"app": "sdk"}, StopSignal: "SIGKILL"},
		&container.HostConfig{Resources: container.Resources{Memory: 64 << 20}}, nil, nil, "sdk")
	if err != nil {
		return err
	}
	if err := p.ContainerStart(p.ctx, "sdk", container.StartOptions{}); err != nil {
		return err
	}
	if err := p.exec(); err != nil {
		return err
	}
	var note bytes.Buffer
	writeTar(&note, "note", "a note")
	if err := p.CopyToContainer(p.ctx, "sdk", "/tmp", &note, container.CopyToContainerOptions{}); err != nil {
		return err
	}
	copied, stat, err := p.CopyFromContainer(p.ctx, "sdk", "/tmp/note")
	if err != nil {
		return err
	}
	archive := tar.NewReader(copied)
	header, err := archive.Next()
	if err != nil {
		return err
	}
	content, err := io.ReadAll(archive)
	copied.Close()
	p.say("copy", stat.Name, stat.Size, stat.Mode, header.Name, string(content), err)
	stat, err = p.ContainerStatPath(p.ctx, "sdk", "/etc/passwd")
	p.say("stat", stat.Name, stat.Size, err)
	stats, err := p.ContainerStatsOneShot(p.ctx, "sdk")
	if err != nil {
		return err
	}
	var usage container.StatsResponse
	err = json.NewDecoder(stats.Body).Decode(&usage)
	stats.Body.Close()
	p.say("stats", usage.Name, usage.MemoryStats.Limit, err)
	list, err := p.ContainerList(p.ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", "app=sdk"))})
	if err != nil {
		return err
	}
	p.say("list", len(list), list[0].Names, list[0].State, list[0].Image, list[0].ID == made.ID)
	byID, err := p.ContainerInspect(p.ctx, made.ID[:10])
	if err != nil {
		return err
	}
	p.say("inspect", byID.Name, byID.State.Status, byID.HostConfig.Memory, byID.Config.Labels["app"])
	for _, act := range []func() error{
		func() error { return p.ContainerPause(p.ctx, "sdk") },
		func() error { return p.ContainerUnpause(p.ctx, "sdk") },
		func() error { return p.ContainerRename(p.ctx, "sdk", "sdk2") },
		func() error { return p.ContainerRestart(p.ctx, "sdk2", container.StopOptions{}) },
		func() error { return p.ContainerKill(p.ctx, "sdk2", "KILL") },
	} {
		if err := act(); err != nil {
			return err
		}
	}
	ended, failed := p.ContainerWait(p.ctx, "sdk2", container.WaitConditionNotRunning)
	select {
	case end := <-ended:
		p.say("killed", end.StatusCode)
	case err := <-failed:
		return err
	}
	pruned, err := p.ContainersPrune(p.ctx, filters.NewArgs(filters.Arg("label", "app=sdk")))
	p.say("prune", pruned.ContainersDeleted)
	return err
}

func (p *program) exec() error {
	made, err := p.ContainerExecCreate(p.ctx, "sdk", container.ExecOptions{AttachStdin: true, AttachStdout: true, AttachStderr: true, Cmd: []string{"sh", "-c", "cat; exit 5"}})
	if err != nil {
		return err
	}
	attached, err := p.ContainerExecAttach(p.ctx, made.ID, container.ExecAttachOptions{})
	if err != nil {
		return err
	}
	defer attached.Close()
	if _, err := io.WriteString(attached.Conn, "through stdin"); err != nil {
		return err
	}
	if err := attached.CloseWrite(); err != nil {
		return err
	}
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, attached.Reader); err != nil {
		return err
	}
	state, err := p.ContainerExecInspect(p.ctx, made.ID)
	p.say("exec", out.String(), state.Running, state.ExitCode)
	return err
}

func (p *program) networksAndVolumes() error {
	net, err := p.NetworkCreate(p.ctx, "sdknet", network.CreateOptions{Labels: map[string]string{"app": "sdk"}, IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: "10.77.3.0/24"}}}})
	if err != nil {
		return err
	}
	vol, err := p.VolumeCreate(p.ctx, volume.CreateOptions{Name: "sdkvol", Labels: map[string]string{"app": "sdk"}})
	if err != nil {
		return err
	}
	p.say("volume", vol.Name, vol.Driver, vol.Scope, vol.Labels["app"])
	for _, name := range []string{"one", "two"} {
		_, err := p.ContainerCreate(p.ctx, &container.Config{Image: p.image, Cmd: []string{"sleep", "1000"}}, &container.HostConfig{NetworkMode: "sdknet", Binds: []string{"sdkvol:/data"}},
			&network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{"sdknet": {Aliases: []string{name + "-alias"}}}}, nil, name)
		if err != nil {
			return err
		}
		if err := p.ContainerStart(p.ctx, name, container.StartOptions{}); err != nil {
			return err
		}
	}
	shown, err := p.NetworkInspect(p.ctx, "sdknet", network.InspectOptions{})
	if err != nil {
		return err
	}
	p.say("network", shown.ID == net.ID, shown.Scope, shown.IPAM.Config, len(shown.Containers))
	list, err := p.NetworkList(p.ctx, network.ListOptions{Filters: filters.NewArgs(filters.Arg("label", "app=sdk"))})
	if err != nil {
		return err
	}
	p.say("networks", len(list), list[0].Name, len(list[0].Containers))
	volumes, err := p.VolumeList(p.ctx, volume.ListOptions{Filters: filters.NewArgs(filters.Arg("name", "sdkvol"))})
	if err != nil {
		return err
	}
	p.say("volumes", len(volumes.Volumes), volumes.Volumes[0].Name)
	if err := p.NetworkDisconnect(p.ctx, net.ID, "two", false); err != nil {
		return err
	}
	if err := p.NetworkConnect(p.ctx, "sdknet", "two", &network.EndpointSettings{Aliases: []string{"back"}}); err != nil {
		return err
	}
	two, err := p.ContainerInspect(p.ctx, "two")
	if err != nil {
		return err
	}
	p.say("two", two.NetworkSettings.Networks["sdknet"].NetworkID == net.ID, slices.Contains(two.NetworkSettings.Networks["sdknet"].Aliases, "back"), len(two.Mounts), two.Mounts[0].Name)
	p.refused("network in use", p.NetworkRemove(p.ctx, "sdknet"))
	p.refused("volume in use", p.VolumeRemove(p.ctx, "sdkvol", false))
	for _, name := range []string{"one", "two"} {
		if err := p.ContainerRemove(p.ctx, name, container.RemoveOptions{Force: true}); err != nil {
			return err
		}
	}
	pruned, err := p.NetworksPrune(p.ctx, filters.NewArgs(filters.Arg("label", "app=sdk")))
	p.say("networks prune", pruned.NetworksDeleted, err)
	p.refused("volume after rm", p.VolumeRemove(p.ctx, "sdkvol", true))
	return nil
}

func (p *program) events() error {
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	messages, failed := p.Events(ctx, events.ListOptions{Filters: filters.NewArgs(filters.Arg("container", "heard"), filters.Arg("type", "container"))})
	for _, step := range []func() error{
		func() error {
			_, err := p.ContainerCreate(p.ctx, &container.Config{Image: p.image, Cmd: []string{"true"}}, nil, nil, nil, "heard")
			return err
		},
		func() error { return p.ContainerStart(p.ctx, "heard", container.StartOptions{}) },
		func() error {
			ended, failed := p.ContainerWait(p.ctx, "heard", container.WaitConditionNotRunning)
			select {
			case <-ended:
				return nil
			case err := <-failed:
				return err
			}
		},
		func() error { return p.ContainerRemove(p.ctx, "heard", container.RemoveOptions{}) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	for {
		select {
		case m := <-messages:
			p.say("event", m.Type, m.Action, m.Actor.Attributes["name"], m.Actor.Attributes["exitCode"], m.Scope, m.Time > 0, m.TimeNano > 0)
			if m.Action == events.ActionDestroy {
				return nil
			}
		case err := <-failed:
			return err
		}
	}
}

func (p *program) errors() error {
	_, err := p.ContainerInspect(p.ctx, "nosuch")
	p.refused("container", err)
	_, err = p.ImageInspect(p.ctx, "nosuch")
	p.refused("image", err)
	_, err = p.NetworkInspect(p.ctx, "nosuch", network.InspectOptions{})
	p.refused("network", err)
	_, err = p.VolumeInspect(p.ctx, "nosuch")
	p.refused("volume", err)
	_, err = p.ContainerExecInspect(p.ctx, "nosuch")
	p.refused("exec", err)
	_, err = p.ContainerCreate(p.ctx, &container.Config{Image: p.image, Cmd: []string{"true"}}, nil, nil, nil, "taken")
	if err != nil {
		return err
	}
	_, err = p.ContainerCreate(p.ctx, &container.Config{Image: p.image}, nil, nil, nil, "taken")
	p.refused("name taken", err)
	_, err = p.ContainerCreate(p.ctx, &container.Config{Image: p.image}, nil, nil, nil, "a/b")
	p.refused("bad name", err)
	_, err = p.ContainerCreate(p.ctx, &container.Config{Image: p.image}, &container.HostConfig{Resources: container.Resources{Memory: 1}}, nil, nil, "")
	p.refused("bad memory", err)
	_, err = p.ContainerExecCreate(p.ctx, "taken", container.ExecOptions{Cmd: []string{"true"}})
	p.refused("exec while it does not run", err)
	_, err = p.SwarmInspect(p.ctx)
	p.refused("swarm", err)
	_, err = p.ServiceList(p.ctx, swarm.ServiceListOptions{})
	p.refused("services", err)
	_, _, err = p.CopyFromContainer(p.ctx, "taken", "/nosuch")
	p.refused("copy of nothing", err)
	p.refused("kill while it does not run", p.ContainerKill(p.ctx, "taken", "KILL"))
	return p.ContainerRemove(p.ctx, "taken", container.RemoveOptions{})
}
