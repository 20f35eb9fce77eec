//! Calls that change groups and topics wherever they are. A group or a topic may be on some brokers only, where it came
//! into being by use; a group that is changed is then the same everywhere, a topic stays where it is.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::merge::{self, Answered};
use super::{AdminFront, BROKER_TIMEOUT};
use crate::proto::karman::reset_offset_request::To;
use crate::proto::karman::{self as v1, BrokerIdentity};
use crate::proto::v2::{self, Code};
use crate::relay::failure;
use crate::status::{Answer as _, Rejection, ok};
use crate::validate::{self, shortened};

/// Refuses to delete a group with these members. Each is named once, also where it is connected to several nodes.
pub fn refuse_connected(group: &str, members: &[v1::ClientState]) -> Result<(), Rejection> {
    let ids: BTreeSet<&str> = members.iter().map(|member| member.client_id.as_str()).collect();
    let Some(first) = ids.first() else { return Ok(()) };
    Err(Rejection::Forbidden {
        what: format!(
            "deleting group {group:?}, of which {} members are connected ({:?} among them),",
            ids.len(),
            shortened(first)
        ),
        rule: "stop them first; by force it goes all the same, and may come into being again by their use",
    })
}

impl AdminFront {
    /// New settings of a group. Brokers that have not seen the group get it: it would come into being there with other
    /// settings.
    pub(super) async fn change_group(
        &self,
        metadata: &MetadataMap,
        message: v1::UpdateGroupRequest,
    ) -> v1::UpdateGroupResponse {
        let answers: Vec<Answered<v1::UpdateGroupResponse>> =
            on_brokers!(self, self.brokers(), update_group, metadata, message);
        let is_unknown = |answer: &Answered<v1::UpdateGroupResponse>| {
            answer.1.as_ref().is_err_and(|status| status.code() == Code::ConsumerGroupNotFound)
        };
        let (missing, there): (Vec<_>, Vec<_>) = answers.into_iter().partition(is_unknown);
        if there.is_empty() {
            let (status, brokers) = merge::results(missing);
            return v1::UpdateGroupResponse { status: Some(status), brokers };
        }
        let brokers: Vec<BrokerIdentity> = missing.into_iter().map(|(broker, _)| broker).collect();
        let made = self.make_group(metadata, message.group.unwrap_or_default(), brokers).await;
        let made = made.into_iter().map(|(broker, answer)| (broker, answer.map(drop)));
        let there = there.into_iter().map(|(broker, answer)| (broker, answer.map(drop)));
        let mut all: Vec<Answered<()>> = there.chain(made).collect();
        all.sort_by(|(a, _), (b, _)| a.broker_name.cmp(&b.broker_name));
        let (status, brokers) = merge::results(all);
        v1::UpdateGroupResponse { status: Some(status), brokers }
    }

    async fn make_group(
        &self,
        metadata: &MetadataMap,
        group: v1::GroupConfig,
        brokers: Vec<BrokerIdentity>,
    ) -> Vec<Answered<v1::CreateGroupResponse>> {
        let message = v1::CreateGroupRequest { group: Some(group) };
        on_brokers!(self, brokers, create_group, metadata, message)
    }

    /// Deletes a group on every broker that has it. First every broker says who its members are, so that one that still reads is
    /// left as it is everywhere.
    pub(super) async fn delete_group_everywhere(
        &self,
        metadata: &MetadataMap,
        message: v1::DeleteGroupRequest,
    ) -> v1::DeleteGroupResponse {
        if !message.force
            && let Err(refused) = self.refuse_connected_anywhere(metadata, &message.name).await
        {
            return v1::DeleteGroupResponse { status: Some(refused), brokers: vec![] };
        }
        let answers: Vec<Answered<v1::DeleteGroupResponse>> =
            on_brokers!(self, self.brokers(), delete_group, metadata, message);
        let (status, brokers) = merge::results(merge::without(answers, Code::ConsumerGroupNotFound));
        v1::DeleteGroupResponse { status: Some(status), brokers }
    }

    async fn refuse_connected_anywhere(&self, metadata: &MetadataMap, group: &str) -> Result<(), v2::Status> {
        validate::group(group)?;
        let message = v1::DescribeGroupRequest { name: group.to_owned(), topic: String::new() };
        let answers: Vec<Answered<v1::DescribeGroupResponse>> =
            on_brokers!(self, self.brokers(), describe_group, metadata, message);
        Ok(refuse_connected(group, &merge::collected(answers, |part| part.clients)?)?)
    }

    /// Moves a group on a topic. First every broker says what would change, so that a refusal of one changes nothing on
    /// any.
    pub(super) async fn reset(
        &self,
        metadata: &MetadataMap,
        message: v1::ResetOffsetRequest,
    ) -> Result<v1::ResetOffsetResponse, v2::Status> {
        self.check_place(&message.topic, &message.broker_name)?;
        let (config, mut lacking) = self.group_and_lacking(metadata, &message.group, &message.topic).await?;
        if let Some(To::LikeGroup(like)) = &message.to {
            self.group_and_lacking(metadata, like, &message.topic).await?;
        }
        let mut brokers: Vec<BrokerIdentity> =
            self.routes.read().masters_of(&message.topic).map(|(broker, _)| broker.clone()).collect();
        brokers.retain(|broker| message.broker_name.is_empty() || broker.broker_name == message.broker_name);
        let dry = v1::ResetOffsetRequest { dry_run: true, ..message.clone() };
        let planned: Vec<Answered<v1::ResetOffsetResponse>> =
            on_brokers!(self, brokers.clone(), reset_offset, metadata, dry);
        let planned = merge::collected(planned, |part| part.moves)?;
        if message.dry_run {
            return Ok(v1::ResetOffsetResponse { status: Some(ok()), moves: planned });
        }
        // Where the group comes into being later it would begin as its settings say and not where it is told now.
        lacking.retain(|broker| brokers.contains(broker));
        for (_, made) in self.make_group(metadata, config, lacking).await {
            made?;
        }
        let moved: Vec<Answered<v1::ResetOffsetResponse>> =
            on_brokers!(self, brokers, reset_offset, metadata, message);
        Ok(merge::moved(moved))
    }

    /// The settings of a group, and the brokers that have not seen it; refused when none has.
    async fn group_and_lacking(
        &self,
        metadata: &MetadataMap,
        group: &str,
        topic: &str,
    ) -> Result<(v1::GroupConfig, Vec<BrokerIdentity>), v2::Status> {
        validate::group(group)?;
        let message = v1::DescribeGroupRequest { name: group.to_owned(), topic: topic.to_owned() };
        let answers: Vec<Answered<v1::DescribeGroupResponse>> =
            on_brokers!(self, self.brokers(), describe_group, metadata, message);
        let (mut config, mut lacking) = (None, Vec::new());
        for (broker, answer) in answers {
            match answer?.groups.into_iter().next() {
                Some(found) => drop(config.get_or_insert(found)),
                None => lacking.push(broker),
            }
        }
        let unknown = || Rejection::GroupNotFound { group: group.to_owned() };
        Ok((config.ok_or_else(unknown)?, lacking))
    }
}
